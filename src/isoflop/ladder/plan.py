"""From a study to every run it will train, before any is: sizes, tokens, exact FLOPs, recipes, trunks, warnings."""

import hashlib
from typing import Any, Literal

import msgspec

from isoflop.architecture import Decoder
from isoflop.architecture.base import Description
from isoflop.cost import flops, parameters, train_flops
from isoflop.ladder import estimate
from isoflop.ladder.machine import Machine
from isoflop.ladder.sizes import widths_of
from isoflop.ladder.study import Grid, IsoFlop, Study
from isoflop.train.schedule import WarmupStableDecay
from isoflop.train.spec import TrainSpec

ROUNDING = 0.1  # how far whole steps may miss a run's tokens
WIDTH_PER_THREAD = 48  # narrower slices of a model cost more to hand out than they save


class PlannedRun(Description, frozen=True):
    """One run: `tokens` = steps * batch * context, each a target of the loss once an epoch."""

    run: str
    role: Literal["fit", "target"]
    family: str
    d_model: int
    n_params: int
    n_params_non_embedding: int
    n_params_matmul: int
    budget: float | None  # the isoFLOP budget it belongs to
    steps: int
    tokens: int
    flops_exact: float
    flops_6nd: float
    estimated_s: float


class Job(Description, frozen=True):
    """A trunk and the runs that branch from it: what one worker trains, one run at least."""

    trunk: str
    spec: TrainSpec
    schedule: WarmupStableDecay
    warmup_steps: int
    context: int
    eval_tokens: int
    device: str
    threads: int
    checkpoint_s: float
    runs: list[PlannedRun]

    @property
    def batch_tokens(self) -> int:
        return self.spec.recipe.batch * self.context

    @property
    def estimated_s(self) -> float:
        """Seconds of the whole job: the trunk once, every decay, evaluations, the compiler."""
        return estimate.job_seconds(self)


class Plan(Description, frozen=True):
    """Every job of a study, those of the fit first, and what looks wrong about the design."""

    jobs: list[Job]
    warnings: list[str]

    def runs(self, role: str | None = None) -> list[PlannedRun]:
        return [run for job in self.jobs for run in job.runs if role in (None, run.role)]


class _Wanted(msgspec.Struct, frozen=True):
    """One run as asked for, before runs with equal recipes are gathered on one trunk."""

    role: Literal["fit", "target"]
    family: str
    d_model: int
    tokens: float
    budget: float | None
    seed: int


def make_plan(study: Study, vocab_size: int, data_digest: str, machine: Machine) -> Plan:
    """Plan a study. Raises ValueError where a budget cannot be spent, or a width is invalid."""
    from isoflop.ladder.design import design_warnings

    if study.execution.compile == "always" and not machine.compiler:
        raise ValueError(
            "[execution] compile = 'always' needs a C++ compiler, and none was found; install g++ or use 'auto'"
        )
    groups: dict[bytes, list[tuple[_Wanted, TrainSpec]]] = {}
    for wanted in _wanted(study, vocab_size):
        spec = _spec(study, wanted, vocab_size)
        key = msgspec.json.encode((wanted.role, wanted.family, spec))
        groups.setdefault(key, []).append((wanted, spec))
    jobs = [_job(study, members, data_digest, machine) for members in groups.values()]
    return Plan(jobs=in_order(jobs), warnings=design_warnings(study, jobs))


def in_order(jobs: list[Job]) -> list[Job]:
    """Those of the fit first."""
    return sorted(jobs, key=lambda job: job.runs[0].role == "target")


def single_job(
    study: Study, family: str, d_model: int, tokens: float, vocab_size: int, data_digest: str, machine: Machine
) -> Job:
    """A job of one run to fit, on a trunk of its own whatever else the study trains."""
    wanted = _Wanted("fit", family, d_model, tokens, None, min(study.training.seeds))
    return _job(study, [(wanted, _spec(study, wanted, vocab_size))], data_digest, machine, alone=True)


def _wanted(study: Study, vocab_size: int) -> list[_Wanted]:
    wanted = []
    for seed in study.training.seeds:
        for name in study.families:
            wanted += _ladder(study, name, vocab_size, seed)
        for target in study.targets:
            family = study.family_of(target)
            tokens = target.tokens or (target.flops or 0) / flops_per_token(study, family, target.d_model, vocab_size)
            wanted.append(_Wanted("target", family, target.d_model, tokens, target.flops, seed))
    return wanted


def _ladder(study: Study, family: str, vocab_size: int, seed: int) -> list[_Wanted]:
    match study.budgets:
        case Grid(d_model=widths, tokens=tokens):
            return [_Wanted("fit", family, width, d, None, seed) for width in widths for d in tokens]
        case IsoFlop() as budgets:
            widths = widths_of(budgets, study.families[family], vocab_size, study.training.context)
            return [
                wanted for budget in budgets.flops for wanted in _spend(study, family, budget, widths, vocab_size, seed)
            ]


def _spend(study: Study, family: str, budget: float, widths: list[int], vocab_size: int, seed: int) -> list[_Wanted]:
    """The runs of one budget: every width whose tokens per parameter come out within the range."""
    assert isinstance(study.budgets, IsoFlop)
    low, high = study.budgets.tokens_per_param
    runs, ratios = [], []
    for width in widths:
        tokens = budget / flops_per_token(study, family, width, vocab_size)
        ratio = tokens / parameters(_decoder(study, family, width, vocab_size)).matmul
        ratios.append(ratio)
        if low <= ratio <= high:
            runs.append(_Wanted("fit", family, width, tokens, budget, seed))
    if not runs:
        raise ValueError(
            f"[budgets] no size in the range can spend {budget:.3g} FLOPs: the {family} family at d_model "
            f"{min(widths)} to {max(widths)} would see {min(ratios):.3g} to {max(ratios):.3g} tokens a parameter, and "
            f"tokens_per_param allows {low:g} to {high:g}"
        )
    return runs


def _decoder(study: Study, family: str, d_model: int, vocab_size: int) -> Decoder:
    return study.families[family].build(d_model, vocab_size, study.training.context)


def flops_per_token(study: Study, family: str, d_model: int, vocab_size: int) -> float:
    """Exact FLOPs of training a family's member of this width on one token."""
    decoder, early = _decoder(study, family, d_model, vocab_size), study.training.early_exit
    return flops(decoder, study.training.context, "exact", early_exit=early is not None).train_per_token


def _spec(study: Study, wanted: _Wanted, vocab_size: int) -> TrainSpec:
    t = study.training
    decoder = _decoder(study, wanted.family, wanted.d_model, vocab_size)
    try:
        choice = t.rule.choose(decoder, round(wanted.tokens), t.context)
    except OverflowError:
        raise ValueError(
            f"[training] rule: its powers leave the range of numbers at d_model {wanted.d_model} and "
            f"{wanted.tokens:.3g} tokens; give smaller exponents"
        ) from None
    if t.early_exit is not None:
        t.early_exit.require_within(decoder.n_layers, f"[training] {wanted.family} at d_model {wanted.d_model}: ")
    return TrainSpec(
        decoder=choice.decoder,
        recipe=choice.recipe,
        optimizer=t.optimizer,
        grad_clip=t.grad_clip,
        dtype=t.dtype,
        seed=wanted.seed,
        compile=study.execution.compile == "always",
        early_exit=t.early_exit,
    )


def _job(
    study: Study, members: list[tuple[_Wanted, TrainSpec]], data_digest: str, machine: Machine, alone: bool = False
) -> Job:
    t, e = study.training, study.execution
    spec = members[0][1]
    batch_tokens = spec.recipe.batch * t.context
    lengths = _lengths([wanted for wanted, _ in members], batch_tokens)
    warmup_steps = t.schedule.warmup_steps(min(lengths))
    is_target = members[0][0].role == "target" and e.device == "cpu"
    threads = (e.target_threads or _useful_threads(spec, machine)) if is_target else e.threads
    if e.compile == "auto" and machine.compiler:
        spec = msgspec.structs.replace(spec, compile=estimate.compiling_pays(spec, t, sorted(lengths), e.device))
    # Role and family belong to it: a held-out run shares no trunk with the runs that forecast it, nor does a family
    # whose small members happen to equal another's.
    first = members[0][0]
    training = (spec, t.schedule, warmup_steps, t.context, t.eval_tokens, threads, e.device, data_digest)
    identity: tuple[Any, ...] = (first.role, first.family, training)
    if alone:
        identity += (sorted(lengths),)
    return Job(
        trunk=_hash(identity),
        spec=spec,
        schedule=t.schedule,
        warmup_steps=warmup_steps,
        context=t.context,
        eval_tokens=t.eval_tokens,
        device=e.device,
        threads=threads,
        checkpoint_s=e.checkpoint_s,
        runs=[_run(study, wanted, spec, steps, _hash((identity, steps))) for steps, wanted in sorted(lengths.items())],
    )


def _lengths(runs: list[_Wanted], batch_tokens: int) -> dict[int, _Wanted]:
    """Steps -> the run of so many. Raises ValueError where whole steps cannot spend what a run was given."""
    lengths: dict[int, _Wanted] = {}
    for wanted in runs:
        steps = max(2, round(wanted.tokens / batch_tokens))
        if abs(steps * batch_tokens / wanted.tokens - 1) > ROUNDING:
            raise ValueError(
                f"[training] a batch of {batch_tokens:,} tokens cannot spend {wanted.tokens:,.0f} tokens at d_model "
                f"{wanted.d_model}: {steps} steps would be {steps * batch_tokens / wanted.tokens - 1:+.0%}; "
                "give a smaller batch or a larger budget"
            )
        if steps in lengths:
            raise ValueError(
                f"[budgets] two runs of d_model {wanted.d_model} come to {steps} steps each; give budgets further apart"
            )
        lengths[steps] = wanted
    return lengths


def _useful_threads(spec: TrainSpec, machine: Machine) -> int:
    """Cores that a run of this width gains from when it trains alone."""
    return max(1, min(machine.cores, spec.decoder.d_model // WIDTH_PER_THREAD))


def _run(study: Study, wanted: _Wanted, spec: TrainSpec, steps: int, run: str) -> PlannedRun:
    counts, context = parameters(spec.decoder), study.training.context
    tokens = steps * spec.recipe.batch * context
    return PlannedRun(
        run=run,
        role=wanted.role,
        family=wanted.family,
        d_model=wanted.d_model,
        n_params=counts.total,
        n_params_non_embedding=counts.non_embedding,
        n_params_matmul=counts.matmul,
        budget=wanted.budget,
        steps=steps,
        tokens=tokens,
        flops_exact=train_flops(spec.decoder, context, tokens, early_exit=spec.early_exit is not None),
        flops_6nd=train_flops(spec.decoder, context, tokens, "6nd"),
        estimated_s=estimate.training_seconds(spec, tokens, context, study.execution.device),
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:12]
