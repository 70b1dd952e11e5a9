"""Every family against transformers with the same weights: logits, gradients, decoding from a cache, and the way back."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hugging_face_families import FAMILIES
from oracle import filled, greedy, loaded, relative, saved

import isoflop
from isoflop.weights.hugging_face import HuggingFaceFolder, export_folder, import_folder

SEEDS = range(3)
LENGTH = 24  # beyond every window, chunk and original context of the configurations


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients(family: str, seed: int, tmp_path: Path) -> None:
    theirs = filled(family, seed)
    folder = HuggingFaceFolder(saved(theirs, tmp_path / "theirs"))
    ours = folder.load()
    tokens, targets = torch.randint(0, 37, (2, 2, LENGTH), generator=torch.Generator().manual_seed(seed))
    their_logits = theirs(tokens).logits
    assert relative(ours(tokens), their_logits) < 1e-4
    assert float(their_logits.detach().std()) > 0.05  # the weights do something

    F.cross_entropy(ours(tokens).flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(their_logits.flatten(0, 1), targets.flatten()).backward()
    theirs_by_name = their_gradients(theirs, tmp_path / "gradients")
    for name, parameter in ours.named_parameters():
        gradient = folder_gradient(folder, name, theirs_by_name)
        if gradient.abs().max() > 1e-6:  # one expert alone: its router has no gradient but rounding
            assert relative(parameter.grad, gradient) < 1e-4, name
