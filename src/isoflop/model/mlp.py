"""The dense feed-forward. B batch, T position, M d_model, F d_ff, H = 2 F where there is a gate, else F."""

from torch import Tensor, nn

from isoflop import architecture
from isoflop.architecture.feed_forward import GATED
from isoflop.model.activation import activate
from isoflop.model.linear import Linear


class Mlp(nn.Module):
    """See architecture.Mlp. Gate and up come from one matrix `gate_up`: one matmul instead of two; without a gate there
    is `up`."""

    def __init__(self, feed_forward: architecture.Mlp, d_model: int) -> None:
        super().__init__()
        f = self.feed_forward = feed_forward
        self.gated = f.activation in GATED
        if self.gated:
            self.gate_up = Linear(d_model, 2 * f.d_ff, bias=f.bias)
        else:
            self.up = Linear(d_model, f.d_ff, bias=f.bias)
        self.down = Linear(f.d_ff, d_model, bias=f.bias)

    def forward(self, x_BTM: Tensor) -> Tensor:
        h_BTH = self.gate_up(x_BTM) if self.gated else self.up(x_BTM)
        return self.down(activate(h_BTH, self.feed_forward.activation))
