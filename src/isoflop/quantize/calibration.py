"""Real text on its way through the layers, and what is kept of every matrix's inputs. B batch, T position, M d_model,
N token, E expert, K top_k, R routed row, I d_in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.model import DecoderModel
from isoflop.model.activation import activate
from isoflop.model.dispatch import Rows, dispatch, sort_rows
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.grouped import grouped_matmul
from isoflop.model.routing import capacity, choose, expert_counts
from isoflop.quantize.sites import Site, Stage, table_of


class Inputs:
    """What the methods need to know of a matrix's inputs: sums over rows of x xᵀ, [E, I, I], and |x|, [E, I], and how
    many rows there were, [E]. All memory that calibration takes: the text's inputs themselves are not kept."""

    def __init__(self, site: Site) -> None:
        n_experts, _, d_in = site.shape
        self.gram_EII = torch.zeros(n_experts, d_in, d_in)
        self.size_EI = torch.zeros(n_experts, d_in)
        self.rows_E = torch.zeros(n_experts)

    def add(self, expert: int, x_RI: Tensor) -> None:
        """Rows that met one expert's matrix."""
        x_RI = x_RI.float()
        self.gram_EII[expert].addmm_(x_RI.T, x_RI)
        self.size_EI[expert] += x_RI.abs().sum(0)
        self.rows_E[expert] += len(x_RI)

    def gram(self, expert: int) -> Tensor:
        """Mean of x xᵀ, [I, I]. An expert that met few rows is given I more, of the mean over all experts: else what it
        did not meet would count nothing."""
        gram_II, rows = self.gram_EII[expert], self.rows_E[expert]
        if len(self.rows_E) == 1:
            return gram_II / rows.clamp(min=1)
        d_in = gram_II.shape[0]
        mean_II = self.gram_EII.sum(0) / self.rows_E.sum().clamp(min=1)
        return (gram_II + d_in * mean_II) / (rows + d_in)

    def mean_size(self) -> Tensor:
        """Mean |x| by channel, [E, I]; of an expert without rows, that over all."""
        pooled_I = self.size_EI.sum(0) / self.rows_E.sum().clamp(min=1)
        rows_E1 = self.rows_E[:, None]
        return torch.where(rows_E1 > 0, self.size_EI / rows_E1.clamp(min=1), pooled_I)


class Walk:
    """Calibration text, one layer after the other: `hidden` are the stream's values before the next layer, by batch.
    What has been done to earlier layers is in them."""

    @torch.no_grad()
    def __init__(self, model: DecoderModel, batches_BT: Sequence[Tensor]) -> None:
        self.model = model.eval()
        self.hidden: list[Tensor] = []
        self._rest: list[list[tuple[Any, ...]]] = []  # what else a layer is told, by batch and layer
        for tokens_BT in batches_BT:
            first, rest = _begin(model, tokens_BT)
            self.hidden.append(first)
            self._rest.append(rest)

    @torch.no_grad()
    def observe(self, i: int, stages: Sequence[Stage]) -> dict[str, Inputs]:
        """What the sites of these stages, of layer i, read, by name."""
        with _recording(stages) as inputs:
            for batch in range(len(self.hidden)):
                self._through(i, batch)
        return inputs

    @torch.no_grad()
    def observe_table(self) -> dict[str, Inputs]:
        """What the output table reads, once every layer has been passed."""
        (site,) = table_of(self.model).sites
        inputs = Inputs(site)
        for x_BTM in self.hidden:
            normed_BTM = x_BTM if self.model.norm is None else self.model.norm(x_BTM)
            inputs.add(0, normed_BTM.flatten(0, 1))
        return {site.name: inputs}

    @torch.no_grad()
    def advance(self, i: int) -> None:
        """Pass layer i, as it is now."""
        self.hidden = [self._through(i, batch) for batch in range(len(self.hidden))]

    def _through(self, i: int, batch: int) -> Tensor:
        out = self.model.layers[i](self.hidden[batch], *self._rest[batch][i])
        after: Tensor = out[0] if isinstance(out, tuple) else out
        return after


def _begin(model: DecoderModel, tokens_BT: Tensor) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """The first layer's input, and what each layer is told beside its own."""
    first: list[Tensor] = []
    rest: list[tuple[Any, ...]] = []

    def keep(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if not rest:
            first.append(args[0])
        rest.append(args[1:])

    with _hooks([layer.register_forward_pre_hook(keep) for layer in model.layers]):
        model(tokens_BT)
    return first[0], rest


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recording(stages: Sequence[Stage]) -> Iterator[dict[str, Inputs]]:
    """While it is open, the sites' inputs are added up."""
    sites = [site for stage in stages for site in stage.sites]
    inputs = {site.name: Inputs(site) for site in sites}
    experts: dict[MixtureOfExperts, dict[str, Inputs]] = {}
    handles = []
    for site in sites:
        if isinstance(site.module, MixtureOfExperts):
            experts.setdefault(site.module, {})[site.part] = inputs[site.name]
        else:
            handles.append(site.module.register_forward_pre_hook(_keep_rows(inputs[site.name])))
    handles += [module.register_forward_pre_hook(_keep_routed(parts)) for module, parts in experts.items()]
    with _hooks(handles):
        yield inputs


def _keep_rows(inputs: Inputs) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda module, args: inputs.add(0, args[0].flatten(0, -2))


def _keep_routed(parts: dict[str, Inputs]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, MixtureOfExperts)
        x_RM, rows = _routed(module, args[0])
        _add_by_expert(parts.get(module.first), x_RM, rows)
        if "down" in parts:
            _add_by_expert(parts["down"], _between(module, x_RM, rows), rows)

    return keep


def _routed(experts: MixtureOfExperts, x_BTM: Tensor) -> tuple[Tensor, Rows]:
    """What the experts' first matrices read, sorted by expert, [R, M]."""
    f, x_NM = experts.feed_forward, x_BTM.flatten(0, 1)
    chosen = choose(experts.router(x_NM.float()), f, experts.selection_bias if f.selection_bias else None)
    counts_E = expert_counts(chosen.expert_NK, f.n_experts)
    rows = sort_rows(chosen.expert_NK, counts_E, capacity(f, len(x_NM)), len(x_BTM))
    x_RM = dispatch(x_NM, rows)
    return (x_RM * chosen.weight_NK.flatten()[rows.order_R, None] if f.weigh == "input" else x_RM), rows


def _between(experts: MixtureOfExperts, x_RM: Tensor, rows: Rows) -> Tensor:
    """What the experts' second matrices read, [R, F]."""
    h_RH = grouped_matmul(x_RM, getattr(experts, experts.first), rows.ends_E)
    if experts.feed_forward.bias:
        h_RH = h_RH + getattr(experts, f"{experts.first}_bias").index_select(0, rows.expert_R)
    return activate(h_RH, experts.feed_forward.activation)


def _add_by_expert(inputs: Inputs | None, x_RI: Tensor, rows: Rows) -> None:
    if inputs is None:
        return
    start = 0
    for expert, end in enumerate(rows.ends_E.tolist()):
        inputs.add(expert, x_RI[start:end])
        start = end
