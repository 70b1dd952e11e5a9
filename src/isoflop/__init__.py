"""Isoflop: from a compute budget to a language model its owner can defend."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from isoflop.model import DecoderModel

__version__ = "0.1.0"


def load(path: "str | os.PathLike[str]", dtype: "torch.dtype | None" = None) -> "DecoderModel":
    """The model in a folder of weights, ours or Hugging Face's; see isoflop.weights.load.load."""
    from isoflop.weights.load import load as load_model  # torch is imported here and not with isoflop

    return load_model(path, dtype)
