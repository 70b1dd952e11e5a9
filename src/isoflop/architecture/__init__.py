"""The language: frozen descriptions of a decoder. Imports nothing else of ours, and no torch."""

from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.family import Dense, Experts, Family, Hybrid, StateSpace
from isoflop.architecture.feed_forward import (
    GATED,
    Activation,
    FeedForward,
    MixtureOfExperts,
    Mlp,
    SharedExperts,
    n_matrices,
)
from isoflop.architecture.mixer import Attention, LatentAttention, Mixer, TemperatureTuning
from isoflop.architecture.norm import NORMS_A_BRANCH, LayerNorm, Norm, Placement, RmsNorm
from isoflop.architecture.position import (
    Alibi,
    Dynamic,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    NoPosition,
    NtkAware,
    Position,
    Rope,
    Scaling,
    Sinusoidal,
    Yarn,
)
from isoflop.architecture.recurrent import S4D, Hyena, Mamba1, Mamba2

__all__ = [
    "GATED",
    "NORMS_A_BRANCH",
    "S4D",
    "Activation",
    "Alibi",
    "Attention",
    "Decoder",
    "Dense",
    "Dynamic",
    "Experts",
    "Family",
    "FeedForward",
    "Hybrid",
    "Hyena",
    "LatentAttention",
    "Layer",
    "LayerNorm",
    "Learned",
    "LinearScaling",
    "Llama3Scaling",
    "LongRope",
    "Mamba1",
    "Mamba2",
    "Mixer",
    "MixtureOfExperts",
    "Mlp",
    "NoPosition",
    "Norm",
    "NtkAware",
    "Placement",
    "Position",
    "RmsNorm",
    "Rope",
    "Scaling",
    "SharedExperts",
    "Sinusoidal",
    "StateSpace",
    "TemperatureTuning",
    "Yarn",
    "n_matrices",
]
