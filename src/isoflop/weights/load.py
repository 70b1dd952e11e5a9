"""A model from a folder of weights, ours or Hugging Face's."""

import os
from pathlib import Path

import torch

from isoflop.model import DecoderModel
from isoflop.weights.checkpoint import Checkpoint, is_checkpoint
from isoflop.weights.hugging_face import CONFIG, HuggingFaceFolder


def load(path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> DecoderModel:
    """The model in a folder: a checkpoint of ours (of `isoflop import`, or a study's models/<run>), or a Hugging Face
    folder of safetensors; on the CPU, ready to evaluate. `model(tokens_BT)` returns logits [B, T, V] in float32.

    Matrices and activations are `dtype`, as stored where None. Memory: the weights and the largest tensor. Raises
    ValueError naming the tensor that is missing, extra, misshapen, damaged or not finite.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    if is_checkpoint(folder):
        return Checkpoint(folder).load(dtype)
    if (folder / CONFIG).exists():
        return HuggingFaceFolder(folder).load(dtype)
    models = sorted(found.name for found in folder.glob("models/*") if is_checkpoint(found))
    hint = f"; it is a study, and its models are {', '.join(f'models/{name}' for name in models)}" if models else ""
    raise ValueError(f"{folder}: holds neither a checkpoint of Isoflop nor a Hugging Face model (config.json){hint}")
