"""Hugging Face config.json in and out: `read.py` makes decoders of it, `write.py` finds the family of a decoder.

One file a group of families holds both directions. No torch, no transformers.
"""

from isoflop.architecture.hugging_face.read import READERS, from_hugging_face, load_hugging_face
from isoflop.architecture.hugging_face.write import nearest

__all__ = ["READERS", "from_hugging_face", "load_hugging_face", "nearest"]
