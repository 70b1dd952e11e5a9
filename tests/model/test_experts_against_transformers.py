"""Sparse blocks of transformers with the same weights: values and gradients of everything."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isoflop.architecture import MixtureOfExperts, SharedExperts
from isoflop.model import experts

M, F, E, K, S = 16, 12, 8, 3, 20  # d_model, d_ff, experts, chosen, width of the shared expert
SHAPE = {"n_experts": E, "top_k": K, "d_ff": F}
DEEPSEEK = {
    "hidden_size": M,
    "num_attention_heads": 4,
    "moe_intermediate_size": F,
    "num_experts_per_tok": K,
    "n_routed_experts": E,
}
GROUPED = {"n_group": 4, "topk_group": 2, "n_shared_experts": 2}

# name: (model, config class, block, config, ours)
CASES: dict[str, tuple[str, str, str, dict[str, Any], MixtureOfExperts]] = {
    "mixtral": (
        "mixtral",
        "MixtralConfig",
        "MixtralSparseMoeBlock",
        {"hidden_size": M, "intermediate_size": F, "num_local_experts": E, "num_experts_per_tok": K},
        MixtureOfExperts(**SHAPE),
    ),
    "qwen2-moe": (
        "qwen2_moe",
        "Qwen2MoeConfig",
        "Qwen2MoeSparseMoeBlock",
        {
            "hidden_size": M,
            "moe_intermediate_size": F,
            "num_experts": E,
            "num_experts_per_tok": K,
            "shared_expert_intermediate_size": S,
            "norm_topk_prob": False,
        },
        MixtureOfExperts(**SHAPE, renormalize=False, shared=SharedExperts(S, gated=True)),
    ),
    "qwen3-moe": (
        "qwen3_moe",
        "Qwen3MoeConfig",
        "Qwen3MoeSparseMoeBlock",
        {
            "hidden_size": M,
            "moe_intermediate_size": F,
            "num_experts": E,
            "num_experts_per_tok": K,
            "norm_topk_prob": True,
        },
        MixtureOfExperts(**SHAPE),
    ),
    "olmoe": (
        "olmoe",
        "OlmoeConfig",
        "OlmoeSparseMoeBlock",
        {
            "hidden_size": M,
            "intermediate_size": F,
            "num_experts": E,
            "num_experts_per_tok": K,
            "norm_topk_prob": False,
        },
        MixtureOfExperts(**SHAPE, renormalize=False),
    ),
    "jamba": (
        "jamba",
        "JambaConfig",
        "JambaSparseMoeBlock",
        {"hidden_size": M, "intermediate_size": F, "num_experts": E, "num_experts_per_tok": K},
        MixtureOfExperts(**SHAPE, renormalize=False),
    ),
    "deepseek-v2, greedy": (
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2Moe",
        DEEPSEEK | {"topk_method": "greedy", "routed_scaling_factor": 1.0, "n_shared_experts": 2},
        MixtureOfExperts(**SHAPE, renormalize=False, shared=SharedExperts(2 * F)),
    ),
    "deepseek-v2, groups": (
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2Moe",
        DEEPSEEK | GROUPED | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
        MixtureOfExperts(
            **SHAPE, renormalize=False, routed_scale=16.0, n_groups=4, top_groups=2, shared=SharedExperts(2 * F)
        ),
    ),
    "deepseek-v3": (
        "deepseek_v3",
        "DeepseekV3Config",
        "DeepseekV3MoE",
        DEEPSEEK | GROUPED | {"routed_scaling_factor": 2.5, "norm_topk_prob": True},
        MixtureOfExperts(
            **SHAPE,
            router="sigmoid",
            selection_bias=True,
            routed_scale=2.5,
            n_groups=4,
            top_groups=2,
            group_score="best-two",
            shared=SharedExperts(2 * F),
        ),
    ),
    "nemotron-h": (
        "nemotron_h",
        "NemotronHConfig",
        "NemotronHMoE",
        DEEPSEEK
        | {
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
            "moe_shared_expert_intermediate_size": S,
            "mlp_hidden_act": "relu2",
            "num_hidden_layers": 1,
            "layers_block_type": ["moe"],
        },
        MixtureOfExperts(
            **SHAPE,
            activation="relu2",
            router="sigmoid",
            selection_bias=True,
            routed_scale=1.5,
            n_groups=2,
            group_score="best-two",
            shared=SharedExperts(S),
        ),
    ),
    "gpt-oss": (
        "gpt_oss",
        "GptOssConfig",
        "GptOssMLP",
        {"hidden_size": M, "intermediate_size": F, "num_local_experts": E, "num_experts_per_tok": K},
        MixtureOfExperts(**SHAPE, activation="swiglu-clamped", bias=True, router_bias=True),
    ),
    "llama-4": (
        "llama4",
        "Llama4TextConfig",
        "Llama4TextMoe",
        {"hidden_size": M, "intermediate_size": F, "num_local_experts": E, "num_experts_per_tok": K},
        MixtureOfExperts(**SHAPE, router="sigmoid", renormalize=False, weigh="input", shared=SharedExperts(F)),
    ),
}


def block(model: str, config_name: str, name: str, options: dict[str, Any]) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    config = getattr(importlib.import_module(f"transformers.models.{model}"), config_name)(**options)
    config._experts_implementation = "eager"
    theirs, generator = getattr(module, name)(config), torch.Generator().manual_seed(1)
    for value in (*theirs.parameters(), *theirs.buffers()):
        value.data = 0.4 * torch.randn(value.shape, generator=generator)
    return theirs.eval()


def interleaved(halves: Tensor) -> Tensor:
    """gpt-oss's columns: gate and up by turns."""
    return torch.stack(halves.chunk(2, -1), -1).flatten(-2)


def their_names(model: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor of ours (a value or a gradient) under transformers' names and layouts."""
    shared = {"qwen2_moe": "shared_expert", "llama4": "shared_expert"}.get(model, "shared_experts")
    router = "router" if model in ("gpt_oss", "llama4", "jamba") else "gate"
    if name.startswith("shared.gate_up"):
        gate, up = value.chunk(2)
        return {f"{shared}.gate_proj.weight": gate, f"{shared}.up_proj.weight": up}
    if name.startswith("shared_gate"):
        return {"shared_expert_gate.weight": value}
    if name.startswith("shared."):
        return {f"{shared}.{name.split('.')[1]}_proj.weight": value}
    if name.startswith("router"):
        return {f"{router}.{name.split('.')[1]}": value}
    if name == "selection_bias":
        return {"gate.e_score_correction_bias": value}
    stack = name.removesuffix("_bias")
    if model == "gpt_oss" and stack == "gate_up":
        value = interleaved(value)
    kept = model in ("gpt_oss", "llama4")  # these two hold [in, out], as we do
    return {f"experts.{stack}_proj{'_bias' if name != stack else ''}": value if kept else value.mT}


def copied(ours: nn.Module, theirs: nn.Module, model: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def renamed(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v for name, value in values.items() for k, v in their_names(model, name, value).items()}

    generator = torch.Generator().manual_seed(2)
    for value in (*ours.parameters(), *ours.buffers()):
        value.data.normal_(0, 0.4, generator=generator)
    theirs.load_state_dict({k: v.detach().clone() for k, v in renamed(ours.state_dict()).items()})
    return renamed


@pytest.mark.parametrize("case", CASES)
def test_blocks(case: str) -> None:
    model, config_name, name, options, f = CASES[case]
    theirs, ours = block(model, config_name, name, options), experts.MixtureOfExperts(f, M)
    renamed = copied(ours, theirs, model)
    x = torch.randn(2, 17, M, generator=torch.Generator().manual_seed(3))
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = ours(mine)[0], theirs(yours)
    wanted = (wanted[0] if isinstance(wanted, tuple) else wanted).view_as(found)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    found.backward(seed)
    wanted.backward(seed)
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-4)
    gradients = renamed({name: p.grad for name, p in ours.named_parameters()})
    for key, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-4, msg=key)
