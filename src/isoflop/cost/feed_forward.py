"""What a feed-forward costs in parameters."""

from typing import assert_never

from isoflop.architecture import FeedForward, MixtureOfExperts, Mlp
from isoflop.architecture.feed_forward import n_matrices
from isoflop.cost.part import Part, dense


def feed_forward_parameters(feed_forward: FeedForward, d_model: int) -> Part:
    """Parameters of a dense or sparse feed-forward."""
    match feed_forward:
        case Mlp():
            return _mlp(feed_forward, d_model)
        case MixtureOfExperts():
            return _mixture(feed_forward, d_model)
    assert_never(feed_forward)


def _mlp(mlp: Mlp, d_model: int) -> Part:
    matrices = n_matrices(mlp.activation)
    biases = (matrices - 1) * mlp.d_ff + d_model if mlp.bias else 0
    return dense(matrices * d_model * mlp.d_ff, biases)


def _mixture(f: MixtureOfExperts, d_model: int) -> Part:
    """The router and shared experts serve every token, of the routed experts top_k do. The selection bias is a buffer:
    a rule moves it, no gradient."""
    expert = _mlp(Mlp(f.d_ff, f.activation, f.bias), d_model)
    always = [dense(f.n_experts * d_model, f.n_experts if f.router_bias else 0)]
    if f.shared is not None:
        always.append(_mlp(Mlp(f.shared.d_ff, f.activation, f.bias), d_model))
        always.append(dense(d_model if f.shared.gated else 0))
    return Part(
        total=f.n_experts * expert.total + sum(part.total for part in always),
        active=f.top_k * expert.active + sum(part.active for part in always),
        matmul=f.top_k * expert.matmul + sum(part.matmul for part in always),
    )
