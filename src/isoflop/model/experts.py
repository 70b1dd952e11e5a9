"""The sparse feed-forward. B batch, T position, N = B * T tokens, M d_model, E experts, K top_k, R = N * K routed rows,
F d_ff, H = 2 F where there is a gate and F where there is none."""

import torch
from torch import Tensor, nn

from isoflop import architecture
from isoflop.architecture.feed_forward import GATED
from isoflop.model.activation import activate
from isoflop.model.dispatch import Rows, combine, dispatch, sort_rows
from isoflop.model.grouped import grouped_matmul
from isoflop.model.kernels.experts import multiplies_rows, rows_of_experts
from isoflop.model.kernels.rows import unrecorded
from isoflop.model.linear import Linear
from isoflop.model.mlp import Mlp
from isoflop.model.quantized import QuantizedWeight
from isoflop.model.quantized_experts import QuantizedExperts
from isoflop.model.routing import RouterStats, capacity, choose, expert_counts, statistics

FEW = 64  # rows that without gradients are not worth sorting


class MixtureOfExperts(nn.Module):
    """See architecture.MixtureOfExperts. Rows are sorted by expert and multiplied group by group."""

    def __init__(self, feed_forward: architecture.MixtureOfExperts, d_model: int) -> None:
        super().__init__()
        f = self.feed_forward = feed_forward
        gated = f.activation in GATED
        self.first = "gate_up" if gated else "up"
        width = 2 * f.d_ff if gated else f.d_ff
        self.router = Linear(d_model, f.n_experts, bias=f.router_bias)
        setattr(self, self.first, nn.Parameter(torch.empty(f.n_experts, d_model, width)))
        self.down = nn.Parameter(torch.empty(f.n_experts, f.d_ff, d_model))
        if f.bias:
            setattr(self, f"{self.first}_bias", nn.Parameter(torch.empty(f.n_experts, width)))
            self.down_bias = nn.Parameter(torch.empty(f.n_experts, d_model))
        if f.selection_bias:
            self.register_buffer("selection_bias", torch.zeros(f.n_experts, dtype=torch.float32))
        if f.shared is not None:
            self.shared = Mlp(architecture.Mlp(f.shared.d_ff, f.activation, f.bias), d_model)
            if f.shared.gated:
                self.shared_gate = Linear(d_model, 1)

    def forward(self, x_BTM: Tensor) -> tuple[Tensor, RouterStats] | Tensor:
        """[B, T, M]; in training with what the router did, in evaluation (`eval()`) without: a decoded token is spared
        the work."""
        f, x_NM = self.feed_forward, x_BTM.flatten(0, 1)
        logits_NE = self.router(x_NM.float())  # a router in bf16 loses the ties that matter (Fedus et al. 2021, 2.4)
        chosen = choose(logits_NE, f, self.selection_bias if f.selection_bias else None)
        y_NM = self._mix(x_NM, chosen.weight_NK.to(x_NM.dtype), chosen.expert_NK, len(x_BTM))
        if f.shared is not None:
            y_NM = y_NM + self._shared(x_NM)
        y_BTM = y_NM.view_as(x_BTM)
        return (y_BTM, statistics(logits_NE, chosen, f, len(x_BTM))) if self.training else y_BTM

    def quantize(self, name: str, weight: QuantizedWeight) -> None:
        """Put codes where the stack of matrices `name` was; their rows lie one expert's after the other's."""
        n_experts = self.feed_forward.n_experts
        delattr(self, name)
        setattr(self, name, QuantizedExperts(weight, n_experts))

    def loss(self, stats: RouterStats) -> Tensor:
        """The weighted sum of the router's losses, a scalar."""
        f = self.feed_forward
        weighted = (
            (f.balance_coef, stats.balance_loss),
            (f.z_coef, stats.z_loss),
            (f.sequence_balance_coef, stats.sequence_balance_loss),
        )
        return sum((coef * loss for coef, loss in weighted if coef), start=torch.zeros_like(stats.z_loss))

    @torch.no_grad()
    def after_step(self, stats: RouterStats) -> None:
        """Balance without a loss (Wang et al. 2024, arXiv 2408.15664, algorithm 1): raise the selection bias of every
        expert under the mean load, lower that of every one over it. `stats` are those of the step just taken."""
        f = self.feed_forward
        if f.bias_update_rate:
            self.selection_bias += f.bias_update_rate * (1 / f.n_experts - stats.load_E).sign()

    def _shared(self, x_NM: Tensor) -> Tensor:
        y_NM: Tensor = self.shared(x_NM)
        return self.shared_gate(x_NM).sigmoid() * y_NM if hasattr(self, "shared_gate") else y_NM

    def _mix(self, x_NM: Tensor, weight_NK: Tensor, expert_NK: Tensor, n_sequences: int) -> Tensor:
        f = self.feed_forward
        unsorted = expert_NK.numel() <= FEW and f.capacity_factor is None
        if unsorted and all(_takes_rows(x_NM, getattr(self, name)) for name in (self.first, "down")):
            return self._mix_few(x_NM, weight_NK, expert_NK)
        rows = sort_rows(expert_NK, expert_counts(expert_NK, f.n_experts), capacity(f, len(x_NM)), n_sequences)
        x_RM = dispatch(x_NM, rows)
        if f.weigh == "input":
            x_RM = x_RM * weight_NK.flatten()[rows.order_R, None]
            weight_NK = torch.ones_like(weight_NK)
        if rows.kept_NK is not None:
            weight_NK = weight_NK * rows.kept_NK
        h_RF = activate(self._linear(self.first, x_RM, rows), f.activation)
        return combine(self._linear("down", h_RF, rows), weight_NK, rows)

    def _mix_few(self, x_NM: Tensor, weight_NK: Tensor, expert_NK: Tensor) -> Tensor:
        """The same for a token or a few, as in decoding."""
        f, expert_R, weight_R1 = self.feed_forward, expert_NK.flatten(), weight_NK.reshape(-1, 1)
        x_RM = x_NM.repeat_interleave(f.top_k, dim=0) if f.top_k > 1 else x_NM
        x_RM = x_RM * weight_R1 if f.weigh == "input" else x_RM
        h_RF = activate(self._rows(self.first, x_RM, expert_R), f.activation)
        y_RM = self._rows("down", h_RF, expert_R)
        y_RM = y_RM if f.weigh == "input" else y_RM * weight_R1
        return y_RM.view(-1, f.top_k, x_NM.shape[-1]).sum(1) if f.top_k > 1 else y_RM

    def _rows(self, name: str, x_R: Tensor, expert_R: Tensor) -> Tensor:
        weight, bias_E = getattr(self, name), getattr(self, f"{name}_bias") if self.feed_forward.bias else None
        if not isinstance(weight, QuantizedExperts):
            return rows_of_experts(x_R, weight, bias_E, expert_R)
        y_R = weight.rows(x_R, expert_R)
        return y_R if bias_E is None else y_R + bias_E.to(y_R.dtype).index_select(0, expert_R)

    def _linear(self, name: str, x_R: Tensor, rows: Rows) -> Tensor:
        weight, x_R = getattr(self, name), rows.served(x_R)
        coded = isinstance(weight, QuantizedExperts)
        y_R = weight.sorted_rows(x_R, rows.ends_E) if coded else grouped_matmul(x_R, weight, rows.ends_E)
        y_R = rows.served(y_R)
        if not self.feed_forward.bias:
            return y_R
        bias_E: Tensor = getattr(self, f"{name}_bias")
        return y_R + bias_E.to(y_R.dtype).index_select(0, rows.expert_R)


def _takes_rows(x_NM: Tensor, weight: Tensor | QuantizedExperts) -> bool:
    return unrecorded(x_NM) if isinstance(weight, QuantizedExperts) else multiplies_rows(x_NM, weight)
