"""Transformers' models with random weights, and the folders they save."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hugging_face_families import random_config, random_model
from isoflop.model import DecoderModel


def filled(family: str, seed: int) -> Any:
    """A transformers model with weights that no symmetry hides: norms, biases and sinks are random too."""
    model, generator = random_model(random_config(family, seed)).float().eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("A_log", "dt_bias", "dt_proj.bias", ".D")):
                parameter.add_(0.2 * noise)  # their first values are meant
            elif parameter.dim() < 2 or "_bias" in name:
                parameter.copy_(parameter + 0.2 * noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """The folder that transformers writes."""
    model.save_pretrained(folder, **options)
    return folder


def loaded(folder: Path) -> Any:
    """Transformers' model of a folder, in float32; every tensor there must have its place, and none be made up."""
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp_min(1e-30))


def greedy(
    model: DecoderModel, prompt_BT: Tensor, n_new: int, restart_after: int | None = None
) -> tuple[Tensor, Tensor]:
    """The most likely continuation [B, n_new], a token at a time from a state, and the logits [B, n_new, V] before each
    token. Once there are more than `restart_after` tokens, all of them are read anew, once."""
    capacity = prompt_BT.shape[1] + n_new
    state, seen, new, logits = model.new_state(prompt_BT.shape[0], capacity), prompt_BT, prompt_BT, []
    for _ in range(n_new):
        if state.length == restart_after:
            state, new = model.new_state(prompt_BT.shape[0], capacity), seen
        logits.append(model(new, state)[:, -1])
        new = logits[-1].argmax(-1, keepdim=True)
        seen = torch.cat((seen, new), dim=1)
    return seen[:, prompt_BT.shape[1] :], torch.stack(logits, dim=1)
