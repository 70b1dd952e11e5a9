"""A whole model, layer by layer. E expert, O d_out, I d_in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from isoflop.model import DecoderModel
from isoflop.model.quantized import Format, QuantizedWeight, round_to_nearest
from isoflop.quantize.awq import Read, best_scales
from isoflop.quantize.calibration import Inputs, Walk
from isoflop.quantize.clip import nearest_with_best_scales
from isoflop.quantize.gptq import DAMPING, gptq
from isoflop.quantize.sites import Site, Stage, require_finite, scale_inputs, stages_of_layer, table_of

Method = Literal["rtn", "gptq", "awq"]
METHODS: tuple[Method, ...] = ("rtn", "gptq", "awq")

Formats = Mapping[str, Format]  # by the name of a site; those it does not name stay as they are
Weights = dict[str, QuantizedWeight]  # by the name of a site; of E experts one of E * O rows, expert after expert
Tell = Callable[[int, int], None]  # layers done, and in all
_Round = Callable[[Tensor, int], QuantizedWeight]  # an expert's matrix


class Options(NamedTuple):
    """Of GPTQ: damping as a share of the mean second moment; columns of large inputs first."""

    damping: float = DAMPING
    act_order: bool = True


DEFAULT = Options()


@torch.no_grad()
def quantize_model(
    model: DecoderModel,
    formats: Formats,
    method: Method,
    batches_BT: Sequence[Tensor] = (),
    options: Options = DEFAULT,
    tell: Tell = lambda done, total: None,
) -> Weights:
    """Choose codes for the matrices that `formats` names, by `method`, on calibration text.

    The model, fp32 and untied, is left with the values that the codes stand for, and with scales moved to where they
    cost nothing: it is then the quantized model in full precision. Each layer is calibrated behind the layers before it
    as they have become; GPTQ, within a layer, each matrix behind those it reads. Raises ValueError where a weight is
    not finite.
    """
    walk = None if method == "rtn" else Walk(model, batches_BT)
    weights: Weights = {}
    n_layers = len(model.layers)
    for i in range(n_layers):
        weights |= _layer(stages_of_layer(model, i), formats, method, options, walk, i)
        if walk is not None:
            walk.advance(i)
        tell(i + 1, n_layers + 1)
    table = _chosen(table_of(model), formats)
    inputs = {} if walk is None or not table.sites else walk.observe_table()
    weights |= _stages([table], formats, method, options, inputs)
    tell(n_layers + 1, n_layers + 1)
    return weights


def _layer(
    stages: Sequence[Stage], formats: Formats, method: Method, options: Options, walk: Walk | None, i: int
) -> Weights:
    stages = [_chosen(stage, formats) for stage in stages]
    if walk is None:
        return _stages(stages, formats, method, options, {})
    if method == "awq":  # scales move backwards, to stages that are not rounded yet
        return _stages(stages, formats, method, options, walk.observe(i, stages))
    weights: Weights = {}
    for stage in stages:
        weights |= _stages([stage], formats, method, options, walk.observe(i, [stage]))
    return weights


def _chosen(stage: Stage, formats: Formats) -> Stage:
    """The stage with only the sites to quantize; where one of several is left, no scale can be moved."""
    sites = tuple(site for site in stage.sites if site.name in formats)
    return Stage(sites, stage.beside, stage.fold if len(sites) == len(stage.sites) else None)


def _stages(
    stages: Sequence[Stage], formats: Formats, method: Method, options: Options, inputs: Mapping[str, Inputs]
) -> Weights:
    scales: dict[str, _Scaled] = {}
    if method == "awq":
        for stage in reversed(stages):
            scales |= _rescaled(stage, formats, inputs)
    weights: Weights = {}
    for site in (site for stage in stages for site in stage.sites):
        require_finite(site)
        scales_EI = scales.get(site.name)
        rounding = _rounding(formats[site.name], method, options, inputs.get(site.name), scales_EI)
        parts = [rounding(weight_OI, e) for e, weight_OI in enumerate(site.dense().float().contiguous())]
        weights[site.name] = _stacked(parts)
        site.dense().copy_(torch.stack([part.dense() for part in parts]))
    return weights


def _rounding(
    format: Format, method: Method, options: Options, inputs: Inputs | None, scales: "_Scaled | None"
) -> _Round:
    def awq(weight_OI: Tensor, e: int) -> QuantizedWeight:
        assert inputs is not None
        assert scales is not None
        scales_I = scales.by_EI[min(e, len(scales.by_EI) - 1)]
        gram_II = inputs.gram(e) / scales_I / scales_I[:, None]
        if scales.folded:
            return nearest_with_best_scales(weight_OI, gram_II, format)
        found = nearest_with_best_scales(weight_OI * scales_I, gram_II, format)
        if bool((scales_I == 1).all()):
            return found
        in_scales = (1 / scales_I).contiguous()
        return QuantizedWeight(found.format, found.d_in, found.codes, found.scales, found.zeros, None, in_scales)

    def by_gptq(weight_OI: Tensor, e: int) -> QuantizedWeight:
        assert inputs is not None
        return gptq(weight_OI, inputs.gram(e), format, options.damping, options.act_order)

    match method:
        case "rtn":
            return lambda weight_OI, e: round_to_nearest(weight_OI, format)
        case "gptq":
            return by_gptq
        case "awq":
            return awq


class _Scaled(NamedTuple):
    """Scales of a site's inputs, [1, I] or [E, I], and whether its columns and what makes its inputs carry them."""

    by_EI: Tensor
    folded: bool


def _rescaled(stage: Stage, formats: Formats, inputs: Mapping[str, Inputs]) -> dict[str, _Scaled]:
    """AWQ's scales of a stage's inputs, moved to what makes them where that is exact."""
    if not stage.sites:
        return {}
    own = len(stage.sites) == 1 and stage.sites[0].shape[0] > 1 and stage.sites[0].part == "down"
    if own and stage.fold is None:  # the experts' second inputs have no place for scales of their own
        return {site.name: _Scaled(torch.ones(1, site.shape[2]), folded=False) for site in stage.sites}
    reads = [[_reads(site, e, formats, inputs) for e in range(site.shape[0])] for site in stage.sites]
    if own:
        sizes_EI = inputs[stage.sites[0].name].mean_size()
        scales_EI = torch.stack([best_scales([read], size_I) for read, size_I in zip(reads[0], sizes_EI, strict=True)])
    else:
        size_I = _mean_size(inputs[stage.sites[0].name])
        scales_EI = best_scales([read for site in reads for read in site], size_I)[None]
    if stage.fold is not None:
        scale_inputs(stage, scales_EI)
        stage.fold(scales_EI)
    return {site.name: _Scaled(scales_EI, stage.fold is not None) for site in stage.sites}


def _reads(site: Site, e: int, formats: Formats, inputs: Mapping[str, Inputs]) -> Read:
    return Read(site.dense()[e].float().contiguous(), inputs[site.name].gram(e), formats[site.name])


def _mean_size(inputs: Inputs) -> Tensor:
    """Mean |x| by channel, [I], over all rows."""
    return inputs.size_EI.sum(0) / inputs.rows_E.sum().clamp(min=1)


def _stacked(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """One matrix whose rows are those of all, one after the other; they share format, order and scales of inputs."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    zeros = None if first.zeros is None else torch.cat([part.zeros for part in parts if part.zeros is not None])
    codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
    return QuantizedWeight(first.format, first.d_in, codes, scales, zeros, first.order, first.in_scales)
