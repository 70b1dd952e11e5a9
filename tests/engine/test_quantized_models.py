"""Models of quantized matrices in the engine: what they say alone, in company and without a cache."""

import copy

import pytest
import torch
from small_engines import FULL, LATENT, MAMBA2, WINDOW, engine_of, model_of, prompts_of, served
from torch import nn

from isoflop.architecture import Mixer
from isoflop.model import DecoderModel
from isoflop.model.linear import Linear
from isoflop.model.quantized import Integer, QuantizedLinear, round_to_nearest


def quantized(model: DecoderModel) -> DecoderModel:
    """All its matrices at 8 bits."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                weight = round_to_nearest(child.weight.detach(), Integer(bits=8, group=8))
                setattr(module, name, QuantizedLinear(weight, child.bias))
    return model


@pytest.mark.parametrize("mixers", [(FULL, WINDOW), (LATENT, LATENT), (MAMBA2, FULL)])
def test_alone_and_in_company(mixers: tuple[Mixer, ...]) -> None:
    """The kernel rounds each row on its own, so company changes nothing; the plain model is near."""
    model, prompts = quantized(model_of(*mixers)), prompts_of(31, 4)
    alone = {id: served(engine_of(model), {id: prompt}, 8)[id] for id, prompt in prompts.items()}
    assert served(engine_of(model), prompts, 8) == alone
    for id, prompt in prompts.items():
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *alone[id]]]))[0, len(prompt) - 1 : -1]
        chosen_T = logits_TV.gather(1, torch.tensor(alone[id])[:, None])[:, 0]
        assert bool((logits_TV.amax(-1) - chosen_T <= 0.05 * logits_TV.std()).all())


def test_a_dense_copy_is_no_part_of_the_model() -> None:
    model = quantized(model_of(LATENT))
    before = set(model.state_dict())
    engine = engine_of(model)
    served(engine, {"a": (1, 2, 3)}, 4)
    attention: nn.Module = model.layers[0].mixer  # type: ignore[assignment,union-attr]
    assert attention._kept is not None and set(model.state_dict()) == before
    assert any(f": {attention._kept[1].nbytes} bytes beside codes" in line for line in engine.notices)
