"""Every family against transformers with the same weights: logits, gradients, decoding with a cache, the way back."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import filled, greedy, loaded, relative, saved
from torch import Tensor

import isoflop
from hugging_face_families import ALL_KINDS, FAMILIES, random_config
from isoflop.architecture import LongRope
from isoflop.model import DecoderModel
from isoflop.weights.convert import to_ours
from isoflop.weights.hugging_face import HuggingFaceFolder, export_folder, import_folder
from isoflop.weights.writer import Form

SEEDS = range(3)
# Further seeds: every scaling of a llama's rotation, LongRoPE in a phi3, a falcon's penalty on distance, no window at
# all in a gpt_oss.
MORE = {"llama": (3, 7, 8, 11), "phi3": (5, 7), "falcon": (4, 6), "gpt_oss": (102,)}
CASES = [(family, seed) for family in FAMILIES for seed in (*SEEDS, *MORE.get(family, ()))]
LENGTH = 24  # beyond every window, chunk and original context of the configurations
PROMPT, NEW = 5, 12


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_family(family: str, seed: int, tmp_path: Path) -> None:
    theirs = filled(family, seed)
    folder = HuggingFaceFolder(saved(theirs, tmp_path / "theirs"))
    ours = folder.load()
    tokens = torch.randint(2, 37, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        agree_on_short_and_long(ours, theirs, tokens)
        decode_alike(family, ours, theirs, tokens[:, :PROMPT])
    agree_on_gradients(folder, ours, theirs, tokens, tmp_path / "gradients")
    come_back(folder.folder, ours, theirs, tokens, tmp_path)


def test_every_scaling_is_among_them() -> None:
    kinds = {random_config(family, seed).rope_parameters["rope_type"] for family, seed in CASES if family == "llama"}
    assert kinds == set(ALL_KINDS)
    assert any(random_config(family, seed).alibi for family, seed in CASES if family == "falcon")


def agree_on_short_and_long(ours: DecoderModel, theirs: Any, tokens: Tensor) -> None:
    for length in (1, 7, LENGTH):
        their_logits = theirs(tokens[:, :length]).logits
        assert relative(ours(tokens[:, :length]), their_logits) < 1e-4
        assert float(their_logits.std()) > 0.05  # the weights do something


def decode_alike(family: str, ours: DecoderModel, theirs: Any, prompt: Tensor) -> None:
    """Token for token, and the logits before each. Their cache is asked, but where it contradicts their own forward: a
    window of one token keeps all, and a Mamba-2's step does not clamp dt."""
    new, logits = greedy(ours, prompt, NEW, restart_after=phi3_border(family, ours))
    their_new, their_logits = generated(theirs, prompt, cached=not their_cache_errs(ours))
    assert relative(logits, their_logits) < 1e-4
    assert torch.equal(new, their_new)


def generated(theirs: Any, prompt: Tensor, cached: bool) -> tuple[Tensor, Tensor]:
    found = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=cached and theirs.config.use_cache is not False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return found.sequences[:, PROMPT:], torch.stack(found.logits, dim=1)


def their_cache_errs(ours: DecoderModel) -> bool:
    mixers = {layer.mixer for layer in ours.decoder.layers}
    clamps = any((getattr(mixer, "dt_min", 0.0) or getattr(mixer, "dt_max", None)) for mixer in mixers)
    return clamps or any(getattr(mixer, "window", None) == 1 for mixer in mixers)


def phi3_border(family: str, ours: DecoderModel) -> int | None:
    """Transformers lets a Phi-3, and no other, read everything anew where LongRoPE changes its factors."""
    scaling = next(
        (ours.decoder.rope_of(x.mixer).scaling for x in ours.decoder.layers if ours.decoder.rope_of(x.mixer)), None
    )
    return scaling.original_max_context if family == "phi3" and isinstance(scaling, LongRope) else None


def agree_on_gradients(folder: HuggingFaceFolder, ours: DecoderModel, theirs: Any, tokens: Tensor, at: Path) -> None:
    """Theirs, saved as if they were weights, come under our names by the same table."""
    targets = tokens.roll(-1, dims=1)
    F.cross_entropy(ours(tokens).flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets.flatten()).backward()
    with torch.no_grad():
        weights = {name: parameter.clone() for name, parameter in theirs.named_parameters()}
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        gradients = HuggingFaceFolder(saved(theirs, at))
        for name, parameter in theirs.named_parameters():
            parameter.copy_(weights[name])
    for name, parameter in ours.named_parameters():
        links = [link._replace(shift=0.0) for link in folder.links[name]]
        gradient = to_ours(Form(torch.float32, folder.shapes[name]), links, gradients.tensors.read)
        if gradient.abs().max() > 1e-6:  # one expert alone: its router has no gradient but rounding
            assert relative(parameter.grad, gradient) < 1e-4, name


def come_back(source: Path, ours: DecoderModel, theirs: Any, tokens: Tensor, tmp_path: Path) -> None:
    """Import, load what was imported, export, load that in transformers: the same logits all along."""
    import_folder(source, tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "back")
    with torch.no_grad():
        logits = ours(tokens)
        assert torch.equal(isoflop.load(tmp_path / "ours")(tokens), logits)
        assert relative(loaded(tmp_path / "back")(tokens).logits, theirs(tokens).logits) < 1e-5
