"""How a decoder knows the order of its tokens."""

from typing import Literal

from isoflop.architecture.base import Description, require_positive


class LinearScaling(Description, frozen=True, tag="linear"):
    """Every position divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        require_positive(factor=self.factor)


class NtkAware(Description, frozen=True, tag="ntk-aware"):
    """theta times factor^(d / (d - 2)): the slowest pair slows by `factor`, the fastest keeps its turn (bloc97 2023;
    Peng et al. 2023, arXiv 2309.00071, section 3.1)."""

    factor: float

    def __post_init__(self) -> None:
        require_positive(factor=self.factor)


class Dynamic(Description, frozen=True, tag="dynamic"):
    """NTK-aware with a factor that follows the length t of the sequence seen so far, where that exceeds
    `original_max_context` o: factor * t / o - (factor - 1) (arXiv 2309.00071, section 3.3)."""

    factor: float
    original_max_context: int

    def __post_init__(self) -> None:
        require_positive(factor=self.factor, original_max_context=self.original_max_context)


class Yarn(Description, frozen=True, tag="yarn"):
    """YaRN (Peng et al. 2023, arXiv 2309.00071): pairs that turn more than `beta_fast` times within the original
    context keep their frequency, those under `beta_slow` are divided by `factor`, those between interpolated
    (`truncate` rounds the two borders to whole pairs). Rotated queries and keys are multiplied by
    `attention_factor`."""

    factor: float
    original_max_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        require_positive(
            factor=self.factor,
            original_max_context=self.original_max_context,
            attention_factor=self.attention_factor,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )


class Llama3Scaling(Description, frozen=True, tag="llama3"):
    """Llama 3.1's frequency scaling (Grattafiori et al. 2024, arXiv 2407.21783): low frequencies are divided by
    `factor`, high ones kept, those between interpolated; with equal factors (Llama 4 Scout) none is between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_context: int

    def __post_init__(self) -> None:
        require_positive(factor=self.factor, original_max_context=self.original_max_context)
        if not 0 < self.low_freq_factor <= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor = {self.low_freq_factor} must lie above 0 and at most at "
                f"high_freq_factor = {self.high_freq_factor}"
            )


class LongRope(Description, frozen=True, tag="longrope"):
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): each pair's frequency is divided by a factor of its own, from
    `short_factors` while the sequence fits `original_max_context` and from `long_factors` beyond. Rotated queries and
    keys are multiplied by `attention_factor`."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_context: int
    attention_factor: float

    def __post_init__(self) -> None:
        require_positive(original_max_context=self.original_max_context, attention_factor=self.attention_factor)
        if not len(self.short_factors) == len(self.long_factors) > 0:
            raise ValueError(
                f"short_factors has {len(self.short_factors)} entries and long_factors {len(self.long_factors)}; "
                "both need one for each rotated pair"
            )
        require_positive(short_factors=min(self.short_factors), long_factors=min(self.long_factors))


Scaling = LinearScaling | NtkAware | Dynamic | Yarn | Llama3Scaling | LongRope


class Rope(Description, frozen=True, tag="rope"):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): pair i of d/2 turns by position * theta^(-2i/d), where d =
    fraction * d_head, made even by rounding down, are the dimensions that turn. Pair i is (i, i + d/2) in the `half`
    layout and (2i, 2i + 1) in the `interleaved` one."""

    theta: float = 10_000.0
    fraction: float = 1.0
    layout: Literal["half", "interleaved"] = "half"
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        require_positive(theta=self.theta)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction = {self.fraction} of each head to rotate must lie above 0 and at most at 1")

    def d_rotated(self, d_head: int) -> int:
        """How many of d_head dimensions turn. Raises ValueError where none would."""
        d = int(d_head * self.fraction) // 2 * 2
        if d == 0:
            raise ValueError(f"rope needs at least 2 dimensions of a head to turn; d_head = {d_head} leaves none")
        if isinstance(self.scaling, LongRope) and len(self.scaling.long_factors) != d // 2:
            raise ValueError(
                f"short_factors and long_factors have {len(self.scaling.long_factors)} entries; "
                f"d_head = {d_head} has {d // 2} rotated pairs"
            )
        return d


class Alibi(Description, frozen=True, tag="alibi"):
    """A penalty on each score, proportional to the distance, with a slope a head (Press et al. 2021, arXiv 2108.12409);
    with p the lowest power of two not below n_heads, slopes are 2^(-max_bias i / p) for i = 1..p; where n_heads < p
    they are those of p/2 heads, then every second of p. `scaled`: the penalty is added before the attention's scale
    multiplies the scores, and so is scaled with them (Falcon)."""

    max_bias: float = 8.0
    scaled: bool = False

    def __post_init__(self) -> None:
        require_positive(max_bias=self.max_bias)


class Learned(Description, frozen=True, tag="learned"):
    """A table of max_context vectors added to the embedded input (Radford et al. 2019, GPT-2)."""


class Sinusoidal(Description, frozen=True, tag="sinusoidal"):
    """Fixed sines and cosines added to the embedded input (Vaswani et al. 2017, arXiv 1706.03762, section 3.5): sine on
    the first half of d_model and cosine on the second, frequencies theta^(-2i / d_model)."""

    theta: float = 10_000.0

    def __post_init__(self) -> None:
        require_positive(theta=self.theta)


class NoPosition(Description, frozen=True, tag="none"):
    """Order is known from the causal mask or from the mixers' own recurrence alone."""


Position = Rope | Alibi | Learned | Sinusoidal | NoPosition
