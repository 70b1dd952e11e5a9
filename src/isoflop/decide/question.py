"""What is asked of the planner: a budget or a quality, laws, limits, a demand, families. All of it is data, so that a
page, a command line and a test ask alike."""

import math
from typing import Literal, get_args

import msgspec

from isoflop.cost.serving import WEIGHT_TYPES, WeightType

Count = Literal["exact", "6nd"]
COUNTS: tuple[Count, ...] = get_args(Count)
FAMILIES = ("dense", "experts", "latent", "mamba-2", "hybrid")
DEFAULT_LAW = "besiroglu-2024"
LEAST_FLOPS = 1e9  # of a budget that could train anything at all


class _Amount(msgspec.Struct, frozen=True, tag_field="type"):
    """A positive amount of what a budget is counted in."""

    amount: float

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise ValueError(f"{self.flag} {self.amount:g}: must be a positive, finite number")

    @property
    def flag(self) -> str:
        """The option of the command line that asks for it."""
        return f"--{type(self).__struct_config__.tag}"


class Flops(_Amount, frozen=True, tag="flops"):
    """Training FLOPs, counted as `Question.count` says."""


class DeviceHours(_Amount, frozen=True, tag="accelerator-hours"):
    """Hours of all devices together, time lost to failures among them."""


class Dollars(_Amount, frozen=True, tag="dollars"):
    """US dollars for training, at a dated price of a device hour."""


class Deadline(_Amount, frozen=True, tag="deadline"):
    """Days by the clock on all the devices."""


class QualityOf(_Amount, frozen=True, tag="quality-of"):
    """The loss of the model of so many parameters that is optimal to train, for the least compute."""


class TargetLoss(_Amount, frozen=True, tag="target-loss"):
    """A loss, for the least compute."""


Goal = Flops | DeviceHours | Dollars | Deadline | QualityOf | TargetLoss
ON_DEVICES = (DeviceHours, Dollars, Deadline)


class LawChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A law by a preset's name, or the path of a study, a law.json or a table of runs, whose columns are named where
    it is not ours. `weight` in an average; `family` where the law is of that family alone; `force`: even where it is
    refused."""

    name: str
    weight: float = 1.0
    family: str | None = None
    n: str | None = None
    d: str | None = None
    loss: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"--law {self.name}: its weight {self.weight:g} must be above 0")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A serving demand: all tokens that will ever be served, prompts and answers together; tokens of a request, and the
    share of them that is prompt; the most seconds between the tokens of an answer; how weights are stored."""

    tokens: float = 0.0
    context: int = 4096
    prompt_share: float = 0.75
    latency_ms: float | None = None
    weights: WeightType = "bf16"

    def __post_init__(self) -> None:
        if not 0 <= self.tokens < math.inf:
            raise ValueError(f"--served-tokens {self.tokens:g}: must be a finite number, 0 or more")
        if self.context < 2:
            raise ValueError(f"--context {self.context}: a request has a prompt and an answer, 2 tokens at least")
        if not 0 < self.prompt_share < 1:
            raise ValueError(f"--prompt-share {self.prompt_share:g}: must lie strictly between 0 and 1, such as 0.75")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise ValueError(f"--latency {self.latency_ms:g}: must be above 0 milliseconds a token")
        if self.weights not in WEIGHT_TYPES:
            raise ValueError(f"--weights '{self.weights}' is unknown; valid: {', '.join(WEIGHT_TYPES)}")

    @property
    def prompt(self) -> int:
        return min(self.context - 1, max(1, round(self.context * self.prompt_share)))

    @property
    def output(self) -> int:
        return self.context - self.prompt


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A decision to be made. Two equal questions have equal answers, to the last digit, as long as the files named in
    `laws` stay what they are.

    `families`: names of FAMILIES, or architectures (a published model's name or a file) whose dial is turned.
    `unique_tokens` limits data, `most_repeats` how often they may be seen. `within`: loss over the optimum's that still
    counts as near-optimal. `count`: how training and serving FLOPs are counted; `6nd` is what most laws meant.
    """

    goal: Goal
    laws: tuple[LawChoice, ...] = (LawChoice(name=DEFAULT_LAW),)
    families: tuple[str, ...] = FAMILIES
    hardware: str | None = None
    devices: int | None = None
    price: str | None = None
    unique_tokens: float | None = None
    most_repeats: float | None = None
    served: Served = Served()
    serve_memory_gib: float | None = None
    device_memory_gib: float | None = None
    context: int = 4096
    vocab_size: int = 65536
    count: Count = "exact"
    within: float = 0.005
    level: float = 0.8

    def __post_init__(self) -> None:
        self._positive()
        if not self.families:
            raise ValueError(f"--family: none is left to choose from; valid: {', '.join(FAMILIES)}, or an architecture")
        if not any(law.family is None for law in self.laws):
            raise ValueError("--law: every law given is of one family; one for all (--law NAME) is needed")
        for law in self.laws:
            if law.family is not None and law.family not in self.families:
                raise ValueError(
                    f"--law {law.family}={law.name}: '{law.family}' is none of the families asked for, "
                    f"{', '.join(self.families)}"
                )
        if self.count not in COUNTS:
            raise ValueError(f"--count '{self.count}' is unknown; valid: {', '.join(COUNTS)}")
        if not 0 < self.within < 1:
            raise ValueError(f"--within {self.within:g}: must lie strictly between 0 and 1, such as 0.005")
        if not 0 < self.level < 1:
            raise ValueError(f"--level {self.level:g}: must lie strictly between 0 and 1, such as 0.8")
        self._devices()

    def _positive(self) -> None:
        limits = {
            "--unique-tokens": self.unique_tokens,
            "--repeats": self.most_repeats,
            "--serve-memory": self.serve_memory_gib,
            "--device-memory": self.device_memory_gib,
            "--train-context": self.context,
            "--vocab": self.vocab_size,
            "--devices": self.devices,
        }
        for flag, value in limits.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{flag} {value:g}: must be a positive, finite number")

    def _devices(self) -> None:
        needs = self.goal.flag if isinstance(self.goal, ON_DEVICES) else None
        if self.served.latency_ms is not None:
            needs = needs or "--latency"
        if self.hardware is None and needs is not None:
            raise ValueError(f"{needs} needs --hardware NAME and --devices N: what the time is spent on")
        given = {"--devices": self.devices, "--price": self.price, "--device-memory": self.device_memory_gib}
        alone = next((flag for flag, value in given.items() if value is not None), None)
        if self.hardware is None and alone is not None:
            raise ValueError(f"{alone} was given without --hardware NAME")
        if self.hardware is not None and self.devices is None:
            raise ValueError(f"--hardware {self.hardware} needs --devices N: how many of them train")
        if self.most_repeats is not None and self.unique_tokens is None:
            raise ValueError("--repeats limits how often --unique-tokens are seen, and those were not given")
        if self.most_repeats is not None and self.most_repeats < 1:
            raise ValueError(f"--repeats {self.most_repeats:g}: must be 1 (each token seen once) or more")
