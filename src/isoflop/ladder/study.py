"""The study file: what to train, on what, how, and what to forecast. Every key is documented in examples/."""

import math
from pathlib import Path
from typing import Literal

import msgspec

from isoflop.architecture import Family
from isoflop.architecture.base import Description, require_positive
from isoflop.architecture.files import load_toml
from isoflop.data.corpus import STDLIB
from isoflop.data.spec import Data, File
from isoflop.train.optimizer import AdamW, Optimizer
from isoflop.train.recipe import EarlyExit
from isoflop.train.rules import Rule
from isoflop.train.schedule import WarmupStableDecay


class IsoFlop(Description, frozen=True, tag="isoflop"):
    """Each budget (exact FLOPs of a whole run) is spent by every size whose tokens per matmul parameter would lie
    within `tokens_per_param`. Sizes are dials (`d_model`) or `n_sizes` of them, even in log N, over `n_params`."""

    flops: list[float]
    d_model: list[int] = []
    n_params: tuple[float, float] | None = None
    n_sizes: int = 6
    tokens_per_param: tuple[float, float] = (5.0, 500.0)

    def __post_init__(self) -> None:
        _require_list("flops", self.flops)
        if self.d_model:
            _require_list("d_model", self.d_model)
        if bool(self.d_model) == (self.n_params is not None):
            raise ValueError("give either d_model (a list of widths) or n_params (a range), not both and not neither")
        for name, pair in (("n_params", self.n_params), ("tokens_per_param", self.tokens_per_param)):
            if pair is not None and not (0 < pair[0] < pair[1] and (math.isfinite(pair[1]) or name != "n_params")):
                raise ValueError(f"{name} = {list(pair)} must be a range, low below high, both above 0")
        require_positive(n_sizes=self.n_sizes)


class Grid(Description, frozen=True, tag="grid"):
    """Every width with every number of tokens."""

    d_model: list[int]
    tokens: list[float]

    def __post_init__(self) -> None:
        _require_list("d_model", self.d_model)
        _require_list("tokens", self.tokens)


class Target(Description, frozen=True):
    """A held-out run: a width, and either exact FLOPs or tokens. `family` may be left out where there is only one."""

    d_model: int
    flops: float | None = None
    tokens: float | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if (self.flops is None) == (self.tokens is None):
            raise ValueError("a target needs either flops or tokens, not both and not neither")
        for name, spent in (("flops", self.flops), ("tokens", self.tokens)):
            if spent is not None and not 0 < spent < math.inf:
                raise ValueError(f"a target's {name} = {spent} must be a finite number above 0")
        require_positive(d_model=self.d_model)


class Training(Description, frozen=True):
    """How every run is trained."""

    rule: Rule
    context: int = 128
    optimizer: Optimizer = AdamW()
    schedule: WarmupStableDecay = WarmupStableDecay()
    grad_clip: float = 1.0
    dtype: Literal["fp32", "bf16"] = "fp32"
    seeds: tuple[int, ...] = (0,)
    eval_tokens: int = 131_072
    early_exit: EarlyExit | None = None

    def __post_init__(self) -> None:
        require_positive(context=self.context, grad_clip=self.grad_clip)
        if self.eval_tokens < self.context:
            raise ValueError(f"eval_tokens = {self.eval_tokens} must be at least one window: context = {self.context}")
        if (
            not self.seeds
            or len(set(self.seeds)) != len(self.seeds)
            or not 0 <= min(self.seeds) <= max(self.seeds) < 2**63
        ):
            raise ValueError(f"seeds = {list(self.seeds)} must be distinct, from 0 to 2^63 - 1, at least one")


class Execution(Description, frozen=True):
    """Where to run. `workers` and `target_threads` at 0 mean one a processor core (on a GPU: `workers` 4). A kill loses
    at most `checkpoint_s` seconds of a trunk's training. Neither workers nor checkpoint_s change a result."""

    device: str = "cpu"
    workers: int = 0
    threads: int = 1
    target_threads: int = 0
    compile: Literal["auto", "always", "never"] = "auto"
    checkpoint_s: float = 15.0

    def __post_init__(self) -> None:
        if self.workers < 0 or self.threads < 1 or self.target_threads < 0:
            raise ValueError(
                f"workers = {self.workers} and target_threads = {self.target_threads} must not be negative, "
                f"threads = {self.threads} must be at least 1"
            )
        if not self.checkpoint_s >= 0:
            raise ValueError(f"checkpoint_s = {self.checkpoint_s} must be seconds between checkpoints, 0 or more")
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise ValueError(f"device = '{self.device}' is unknown; valid: cpu, cuda, cuda:0, ...")


class Forecast(Description, frozen=True):
    """How the law is fitted and the forecast made. With `until`, runs are added after the planned ones until half the
    width of every held-out interval is at most that share of the loss (.01: +-1 %), or runs to fit have taken
    `most_flops` (exact FLOPs, together with the planned ones; twice those if not given)."""

    level: float = 0.8
    delta: float = 1e-3
    bootstrap: int = 1000
    until: float | None = None
    most_flops: float | None = None

    def __post_init__(self) -> None:
        require_positive(delta=self.delta, bootstrap=self.bootstrap)
        if self.until is not None and not 0 < self.until < 1:
            raise ValueError(f"until = {self.until} must lie between 0 and 1, such as 0.01 for an interval of +-1 %")
        if self.most_flops is not None and not (self.until and 0 < self.most_flops < math.inf):
            raise ValueError(f"most_flops = {self.most_flops} must be a finite number above 0, and go with until")
        if not 0 < self.level < 1:
            raise ValueError(f"level = {self.level} must lie between 0 and 1")


class Study(Description, frozen=True):
    """A whole study file."""

    families: dict[str, Family]
    budgets: IsoFlop | Grid
    training: Training
    data: Data = Data()
    targets: list[Target] = []
    execution: Execution = Execution()
    forecast: Forecast = Forecast()

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError('families is empty; name at least one, such as [families.dense] with type = "dense"')
        for target in self.targets:
            self.family_of(target)
        if self.forecast.until is not None and not self.targets:
            raise ValueError("[forecast] until asks for a narrow interval at a held-out run: give one in [[targets]]")

    def family_of(self, target: Target) -> str:
        """The name of a target's family. Raises ValueError where it is unknown or ambiguous."""
        if target.family is None and len(self.families) == 1:
            return next(iter(self.families))
        if target.family not in self.families:
            raise ValueError(f"a target's family is {target.family!r}; valid: {', '.join(self.families)}")
        return target.family


def load_study(path: Path) -> Study:
    """Read a study file. A relative data source or tokenizer is looked up beside it. Raises ValueError naming file and
    key."""
    study = load_toml(path, Study)
    data = study.data
    if data.source != STDLIB:
        data = msgspec.structs.replace(data, source=_beside(path, data.source))
    if isinstance(data.tokenizer, File):
        found = msgspec.structs.replace(data.tokenizer, path=_beside(path, data.tokenizer.path))
        data = msgspec.structs.replace(data, tokenizer=found)
    return msgspec.structs.replace(study, data=data)


def _beside(path: Path, name: str) -> str:
    return name if Path(name).is_absolute() else str((path.parent / name).resolve())


def _require_list(name: str, values: list[int] | list[float]) -> None:
    if not values or not all(0 < value < math.inf for value in values) or len(set(values)) != len(values):
        raise ValueError(f"{name} = {values} must be distinct, finite numbers above 0, at least one")
