"""A model from a folder of weights, ours or Hugging Face's."""

import os
from pathlib import Path

import torch

from isoflop.model import DecoderModel
from isoflop.weights.checkpoint import Checkpoint, is_checkpoint
from isoflop.weights.hugging_face import CONFIG, HuggingFaceFolder

# Where a study keeps the final weights of its held-out targets; see ladder/job.py.
MODELS_OF_STUDY = "jobs/*/models/*"


def load(path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> DecoderModel:
    """The model in a folder: a checkpoint of ours (of `isoflop import`), a Hugging Face folder of safetensors, or a
    study with one finished target; on the CPU, ready to evaluate. `model(tokens_BT)` returns logits [B, T, V] in
    float32.

    Matrices and activations are `dtype`, as stored where None. Memory: the weights and the largest tensor. Raises
    ValueError naming the tensor that is missing, extra, misshapen, damaged or not finite.
    """
    folder = find_weights(Path(path))
    return Checkpoint(folder).load(dtype) if is_checkpoint(folder) else HuggingFaceFolder(folder).load(dtype)


def find_weights(folder: Path) -> Path:
    """The folder itself where it holds weights, or the one model of a study. Raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    if is_checkpoint(folder) or (folder / CONFIG).exists():
        return folder
    models = sorted(found for found in folder.glob(MODELS_OF_STUDY) if is_checkpoint(found))
    if len(models) == 1:
        return models[0]
    if models:
        raise ValueError(f"{folder}: has {len(models)} models: name one of {', '.join(map(str, models))}")
    raise ValueError(
        f"{folder}: holds neither a checkpoint of Isoflop, nor a Hugging Face model (config.json), nor a study's"
    )
