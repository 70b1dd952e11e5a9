"""The router's loss against transformers'; whole models are held against it in tests/weights."""

import pytest
import torch

from isoflop.architecture import MixtureOfExperts
from isoflop.model.routing import route


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_load_balancing_loss(top_k: int) -> None:
    """Transformers' shares of tokens sum to top_k, ours of rows to one: theirs is top_k times ours."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits_NE = torch.randn(33, 5, generator=torch.Generator().manual_seed(3))
    _, _, stats = route(logits_NE, MixtureOfExperts(n_experts=5, top_k=top_k, d_ff=8))
    theirs = load_balancing_loss_func((logits_NE,), num_experts=5, top_k=top_k)
    assert float(stats.balance_loss) * top_k == pytest.approx(float(theirs), rel=1e-5)
