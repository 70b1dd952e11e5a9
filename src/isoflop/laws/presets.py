"""Published laws with their constants, as far as they are known unrounded, and how far each was checked.

`status` says where the numbers stand: `reproduced`, where this project's tests find them in the published data or meet
a published check value; `primary`, read in the paper or its code; `secondary`, known from other publications or from
memory of the paper, and to be checked there before anything hangs on them. Nothing is called better than it is.

Losses of different tokenizers and data are not comparable, and neither are their constants.
"""

import difflib
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.families import DATA_CONSTRAINED, QUANTIZATION
from isoflop.laws.forms import Array
from isoflop.laws.formula import Formula, user_formula

Status = Literal["reproduced", "primary", "secondary"]

CHINCHILLA = "E + A/N^alpha + B/D^beta"
ALL = "N counts every parameter; C = 6 N D"


RATIOS = 1e-3, 1e6  # tokens a parameter between which a best size is looked for
COARSE, FINE = 2001, 201  # sizes tried, at first and about the best of them


class Best(msgspec.Struct, frozen=True):
    """What a law says to train at a budget, under C = 6 N D."""

    flops: float
    n: float
    d: float
    value: float


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A published law: `formula` over `columns` at `parameters`."""

    name: str
    formula: str
    columns: tuple[str, ...]
    parameters: dict[str, float]
    units: str
    convention: str
    fitted: dict[str, tuple[float, float]]  # range of a column, as far as published
    source: str
    status: Status
    note: str = ""
    unit: Literal["loss", "other"] = "loss"  # what it gives: a loss (nats a token), or a size or setting

    def value(self, **columns: npt.ArrayLike) -> Array:
        """The law at these columns. ValueError where one is missing."""
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise ValueError(f"preset {self.name}: needs {', '.join(self.columns)}; {', '.join(missing)} is missing")
        table = {name: np.asarray(columns[name], float) for name in self.columns}
        return self.as_formula().value(self.parameters, table)

    def as_formula(self) -> Formula:
        """The form, to be fitted to other data."""
        return user_formula(self.formula, self.columns)

    def best(self, flops: float, **others: float) -> Best:
        """The N and D of least loss at C = 6 N D, with N and D as the law counts them, `others` held.

        ValueError where the law is not of N and D, and where more parameters (or tokens) are always better.
        """
        if not {"N", "D"} <= set(self.columns) or self.unit == "other":
            raise ValueError(
                f"preset {self.name}: is of {', '.join(self.columns)}; only a loss of N and D has a best N"
            )
        if not (np.isfinite(flops) and flops > 0):
            raise ValueError(f"flops: {flops} is not a budget; it must be a positive number")
        low, high = (0.5 * np.log(flops / 6 / ratio) for ratio in reversed(RATIOS))
        for count in (COARSE, FINE):
            log_n = np.linspace(low, high, count)
            n = np.exp(log_n)
            values = self.value(N=n, D=flops / 6 / n, **{name: np.full(count, one) for name, one in others.items()})
            least = int(values.argmin())
            if not 0 < least < count - 1:
                raise ValueError(f"preset {self.name}: no best size at {flops:g} FLOPs; the optimum lies at a bound")
            low, high = log_n[least - 1], log_n[least + 1]
        return Best(flops, float(n[least]), float(flops / 6 / n[least]), float(values[least]))

    def outside(self, **columns: float) -> list[str]:
        """Which of these lie outside the published range of the fit, in words."""
        return [
            f"{name} of {value:.4g} is outside the fitted {self.fitted[name][0]:.4g} to {self.fitted[name][1]:.4g}"
            for name, value in columns.items()
            if name in self.fitted and not self.fitted[name][0] <= value <= self.fitted[name][1]
        ]


HOFFMANN = Preset(
    name="hoffmann-2022",
    formula=CHINCHILLA,
    columns=("N", "D"),
    parameters={
        "E": float(np.exp(0.5267228)),
        "A": float(np.exp(6.0073404)),
        "B": float(np.exp(6.0179186)),
        "alpha": 0.33917084,
        "beta": 0.2849083,
    },
    units="nats a token of MassiveText",
    convention=ALL,
    fitted={"N": (4.4e7, 1.61e10), "D": (2.5e8, 5e11)},
    source="Hoffmann et al. 2022, section 3.3 and appendix D.3 (1.69, 406.4, 410.7, .34, .28 rounded); unrounded in a "
    "comment of the paper's TeX, as the code of Besiroglu et al. 2024 quotes it",
    status="secondary",
    note="not the optimum of its own data: see besiroglu-2024. Rounded, its D/N at 5.76e23 FLOPs changes by a third",
)

HOFFMANN_RULE = Preset(
    name="hoffmann-2022-approach-1",
    formula="K*C^a",
    columns=("C",),
    parameters={"K": 120.0**-0.5, "a": 0.5},
    units="parameters, of C in FLOPs",
    convention="the optimal N of a budget; " + ALL,
    fitted={"C": (1e18, 3e21)},
    source="Hoffmann et al. 2022, approach 1 and table 3: N and D grow alike, about 20 tokens a parameter",
    status="reproduced",
    note="Chinchilla's own 70B and 1.4e12 tokens at 5.76e23 FLOPs; approach 3 (hoffmann-2022) gives 40B there, its "
    "refit (besiroglu-2024) 73B",
    unit="other",
)

SARDANA = Preset(
    name="sardana-2024",
    formula=CHINCHILLA,
    columns=("N", "D"),
    parameters={"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283},
    units="nats a token of MassiveText",
    convention=ALL,
    fitted={"N": (4.4e7, 1.61e10), "D": (2.5e8, 5e11)},
    source="Hoffmann et al. 2022, approach 3, with three digits of the exponents",
    status="reproduced",
    note="the constants with which the figures of Sardana et al. 2024 come out: 16.4B and 3.27e12 tokens for the "
    "quality of 30B and 5e12 served tokens, 41.6B and 7.92e12 for 70B and 1e13",
)

BESIROGLU = Preset(
    name="besiroglu-2024",
    formula=CHINCHILLA,
    columns=("N", "D"),
    parameters={"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347310, "beta": 0.367172},
    units="nats a token of MassiveText",
    convention=ALL,
    fitted={"N": (5.7e7, 1.62e10), "D": (4.8e8, 3.2e11)},
    source="Besiroglu et al. 2024: 240 points of figure 4 of Hoffmann et al. 2022; the exact optimum of their fit",
    status="reproduced",
    note="five of 245 points are left out; with them D/N at 5.76e23 FLOPs falls from 17.9 to 6.8",
)

KAPLAN = Preset(
    name="kaplan-2020",
    formula="((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D",
    columns=("N", "D"),
    parameters={"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    units="nats a token of WebText2",
    convention="N without embeddings; C = 6 N D",
    fitted={"N": (768.0, 1.5e9), "D": (2.2e7, 2.3e10)},
    source="Kaplan et al. 2020, eq. 1.5 and table 2; given rounded",
    status="secondary",
    note="quoted alike by independent sources. No irreducible loss; decay, warm-up and the head's FLOPs "
    "bend its exponents (Porian et al. 2024)",
)

MUENNIGHOFF = Preset(
    name="muennighoff-2023",
    formula=DATA_CONSTRAINED.text,
    columns=DATA_CONSTRAINED.columns,
    parameters={
        "E": float(np.exp(0.6254804)),
        "A": float(np.exp(6.255414)),
        "B": float(np.exp(7.3049974)),
        "alpha": 0.3526596,
        "RN": 5.309743,
        "RD": 15.387756,
    },
    units="nats a token of C4",
    convention=ALL + "; UN = U (A/B)^(1/alpha) is the N that is optimal for U unique tokens",
    fitted={"N": (7e6, 8.7e9), "D": (1e8, 9e11)},
    source="Muennighoff et al. 2023, eq. 5, 6 and the repository's check value",
    status="reproduced",
    note="the formula meets the published check value to the last digit; the fit itself was not repeated",
)

LLAMA_3 = Preset(
    name="llama-3-2024",
    formula="K*C^a",
    columns=("C",),
    parameters={"K": 0.29936, "a": 0.53678},
    units="tokens, of C in FLOPs",
    convention="the optimal D of a budget",
    fitted={"C": (6e18, 1e22)},
    source="Grattafiori et al. 2024, section 3.2.1: parabolas over ten budgets, then a line",
    status="reproduced",
    note="90 % interval of the exponent: .503 to .571, by the scatter about the line",
    unit="other",
)

PORIAN = Preset(
    name="porian-2024",
    formula="K*C^a",
    columns=("C",),
    parameters={"K": 0.11892648397493802, "a": 0.49689507817885203},
    units="parameters, of C in FLOPs",
    convention="the optimal N of a budget; N without the input table, with the head; C = 6 N D",
    fitted={"C": (1.25e16, 2.56e19)},
    source="Porian et al. 2024, figure 1: RefinedWeb, short warm-up, constant learning rate, tuned for each size",
    status="reproduced",
    note="the exponent within .001 by isoFLOPs interpolated after Akima",
    unit="other",
)

STEP_LAW_RATE = Preset(
    name="step-law-2025-learning-rate",
    formula="K*N^a*D^b",
    columns=("N", "D"),
    parameters={"K": 1.79, "a": -0.713, "b": 0.307},
    units="peak learning rate of AdamW",
    convention="N without embeddings",
    fitted={"N": (6e7, 1e9), "D": (2e9, 1e11)},
    source="Li et al. 2025, eq. 1; given rounded",
    status="secondary",
    note="quoted alike by independent sources",
    unit="other",
)

STEP_LAW_BATCH = Preset(
    name="step-law-2025-batch",
    formula="K*D^b",
    columns=("D",),
    parameters={"K": 0.58, "b": 0.571},
    units="tokens a batch",
    convention="depends on D alone",
    fitted={"D": (2e9, 1e11)},
    source="Li et al. 2025, eq. 1; given rounded",
    status="secondary",
    note="quoted alike by independent sources",
    unit="other",
)

DEEPSEEK_RATE = Preset(
    name="deepseek-2024-learning-rate",
    formula="K*C^a",
    columns=("C",),
    parameters={"K": 0.3118, "a": -0.1250},
    units="peak learning rate of AdamW, of C in FLOPs",
    convention="C counts attention: non-embedding FLOPs a token times tokens",
    fitted={"C": (1e17, 2e19)},
    source="DeepSeek-AI 2024 (DeepSeek LLM), eq. 1",
    status="secondary",
    note="quoted alike by independent sources; .3188 in Li et al. 2025",
    unit="other",
)

DEEPSEEK_BATCH = Preset(
    name="deepseek-2024-batch",
    formula="K*C^a",
    columns=("C",),
    parameters={"K": 0.2920, "a": 0.3271},
    units="tokens a batch, of C in FLOPs",
    convention="C counts attention: non-embedding FLOPs a token times tokens",
    fitted={"C": (1e17, 2e19)},
    source="DeepSeek-AI 2024 (DeepSeek LLM), eq. 1",
    status="secondary",
    note="quoted alike by independent sources",
    unit="other",
)

GADRE = Preset(
    name="gadre-2024-redpajama",
    formula="E + (a*m^eta + b*m^(-eta))/C^eta",
    columns=("C", "m"),
    parameters={"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136},
    units="nats a token of C4, models trained on RedPajama",
    convention=ALL + "; m = D/N",
    fitted={"m": (20.0, 640.0)},
    source="Gadre et al. 2024, eq. 4 and table 3; given rounded",
    status="secondary",
)

KRAJEWSKI = Preset(
    name="krajewski-2024",
    formula="c + (g/G^gamma + a)/N^alpha + b/D^beta",
    columns=("N", "D", "G"),
    parameters={"a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "g": 2.1, "gamma": 0.58, "c": 0.47},
    units="nats a token of C4",
    convention="N counts total parameters without embeddings, idle experts too; 64 times expansion",
    fitted={"G": (1.0, 16.0)},
    source="Krajewski et al. 2024, eq. 9 and table 1; given rounded",
    status="primary",
    note="meets the losses of its own table 2 within 1 %, which is the rounding of the exponents",
)

KUMAR_QUANTIZATION = Preset(
    name="kumar-2024-quantization",
    formula=QUANTIZATION.text,
    columns=("N", "D", "P"),
    parameters={"K": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_P": 0.5907},
    units="nats a token of Dolma, above the loss before quantization",
    convention="N without embeddings; P bits of the weights, quantized after training (GPTQ)",
    fitted={"N": (3e7, 2.2e8), "D": (1.5e9, 2.6e10), "P": (3.0, 6.0)},
    source="Kumar et al. 2024, eq. 2 and appendix K, table 2; given rounded",
    status="primary",
    note="grows with D: the longer a model was trained, the more it loses",
    unit="other",
)

KAPLAN_N = Preset(
    name="kaplan-2020-parameters",
    formula="(Nc/N)^alpha_N",
    columns=("N",),
    parameters={"Nc": 8.8e13, "alpha_N": 0.076},
    units="nats a token of WebText2",
    convention="N without embeddings; trained to convergence on as much data as it takes",
    fitted={"N": (768.0, 1.5e9)},
    source="Kaplan et al. 2020, eq. 1.1; given rounded",
    status="secondary",
    note="quoted alike by independent sources",
)

KAPLAN_D = Preset(
    name="kaplan-2020-data",
    formula="(Dc/D)^alpha_D",
    columns=("D",),
    parameters={"Dc": 5.4e13, "alpha_D": 0.095},
    units="nats a token of WebText2",
    convention="D unique tokens; large models stopped early",
    fitted={"D": (2.2e7, 2.3e10)},
    source="Kaplan et al. 2020, eq. 1.2; given rounded",
    status="secondary",
    note="quoted alike by independent sources",
)

KAPLAN_C = Preset(
    name="kaplan-2020-compute",
    formula="(Cc/C)^alpha_C",
    columns=("C",),
    parameters={"Cc": 3.1e8 * 8.64e19, "alpha_C": 0.050},
    units="nats a token of WebText2, of C in FLOPs",
    convention="C is C_min, at a batch far below the critical one; N without embeddings; a PF-day is 8.64e19 FLOPs",
    fitted={},
    source="Kaplan et al. 2020, eq. 1.3 (3.1e8 PF-days); given rounded",
    status="secondary",
    note="quoted alike by independent sources",
)

DEEPSEEK_TOKENS = Preset(
    name="deepseek-2024-tokens",
    formula="K*C^a",
    columns=("C",),
    parameters={"K": 5.8316, "a": 0.4757},
    units="tokens, of C in FLOPs",
    convention="the optimal D of a budget; C is non-embedding FLOPs a token (with attention) times tokens",
    fitted={"C": (1e17, 3e20)},
    source="DeepSeek-AI 2024 (DeepSeek LLM), eq. 4",
    status="secondary",
    note="quoted alike by independent sources; C/D is .1715 C^.5243, FLOPs a token",
    unit="other",
)

CLARK = Preset(
    name="clark-2022-s-base",
    formula="exp(2.302585092994046*(d + a*log(N)/2.302585092994046 + b*log(1/(1/(X - 1 + 1/(1/Xs - 1/Xm)) + 1/Xm))"
    "/2.302585092994046 + c*log(N)*log(1/(1/(X - 1 + 1/(1/Xs - 1/Xm)) + 1/Xm))/5.301898110478399))",
    columns=("N", "X"),
    parameters={"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "Xs": 1.847, "Xm": 314.478},
    units="nats a token of MassiveText",
    convention="N parameters of the dense model, X experts in every other layer, one active; 130e9 tokens",
    fitted={"N": (1.5e7, 1.3e9), "X": (1.0, 512.0)},
    source="Clark et al. 2022, eq. 1 and table 3: S-BASE; logarithms to base 10, given rounded",
    status="secondary",
    note="quoted alike by independent sources; with one expert within 2 % of the paper's own dense law",
)

KRAJEWSKI_DENSE = Preset(
    name="krajewski-2024-dense",
    formula=CHINCHILLA,
    columns=("N", "D"),
    parameters={"A": 16.3, "alpha": 0.126, "B": 26.7, "beta": 0.127, "E": 0.47},
    units="nats a token of C4",
    convention="N without embeddings; C = 6 N D",
    fitted={},
    source="Krajewski et al. 2024, eq. 1 and table 1: the dense models beside the experts, of one floor",
    status="primary",
)

KUMAR = Preset(
    name="kumar-2024-training-precision",
    formula="E + A/(N*(1 - exp(nw - W/gw))*(1 - exp(na - X/ga))*(1 - exp(nkv - K/gkv)))^alpha + B/D^alpha",
    columns=("N", "D", "W", "X", "K"),
    parameters={
        "A": 4299.0,
        "B": 18060.0,
        "E": 2.7648,
        "alpha": 0.4965,
        "gw": 2.6745,
        "nw": 0.3037,
        "ga": 2.2102,
        "na": 1.4072,
        "gkv": 0.9578,
        "nkv": 2.4185,
    },
    units="nats a token of Dolma",
    convention="N without embeddings; W, X, K: integer bits of weights, activations and KV cache in training",
    fitted={"N": (3e7, 2.2e8), "D": (1.5e9, 2.6e10), "W": (3.0, 12.0), "X": (4.0, 12.0), "K": (4.0, 12.0)},
    source="Kumar et al. 2024, eq. 3 to 5 and appendix K, table 2; given rounded",
    status="primary",
    note="the appendix gives the offsets n, which the main text leaves out, without their sign: read here so that few "
    "bits of activations and cache hurt, as its figures show",
)

TAO = Preset(
    name="tao-2024-vocabulary",
    formula="A/(N*1e-6)^alpha + F/(V*1e-6)^beta + B/(D*1e-9)^alpha - E",
    columns=("N", "V", "D"),
    parameters={"A": 1.831, "F": 0.196, "B": 2.124, "E": 5.533, "alpha": 0.447, "beta": 0.671},
    units="nats a token less those of a unigram model: negative; SlimPajama",
    convention="N parameters outside the vocabulary, V inside it (size times width), D tokens",
    fitted={"N": (3.3e7, 1.13e9), "V": (2e6, 2e8), "D": (1e9, 1.3e11)},
    source="Tao et al. 2024, eq. 6 and approach 3; the units (millions, billions) from its code",
    status="reproduced",
    note="the form and its units are read in the code, the constants quoted from the paper by others; they meet its "
    "best vocabularies of 7e9 to 7e10 parameters",
    unit="other",
)

GADRE_C4 = Preset(
    name="gadre-2024-c4",
    formula=GADRE.formula,
    columns=("C", "m"),
    parameters={"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121},
    units="nats a token of C4, models trained on C4",
    convention=GADRE.convention,
    fitted=GADRE.fitted,
    source=GADRE.source,
    status="secondary",
)

GADRE_REFINEDWEB = Preset(
    name="gadre-2024-refinedweb",
    formula=GADRE.formula,
    columns=("C", "m"),
    parameters={"E": 1.73, "a": 157.0, "b": 246.0, "eta": 0.127},
    units="nats a token of C4, models trained on RefinedWeb",
    convention=GADRE.convention,
    fitted=GADRE.fitted,
    source=GADRE.source,
    status="secondary",
)

PRESETS = (
    HOFFMANN,
    HOFFMANN_RULE,
    SARDANA,
    BESIROGLU,
    KAPLAN,
    KAPLAN_N,
    KAPLAN_D,
    KAPLAN_C,
    MUENNIGHOFF,
    LLAMA_3,
    PORIAN,
    STEP_LAW_RATE,
    STEP_LAW_BATCH,
    DEEPSEEK_RATE,
    DEEPSEEK_BATCH,
    DEEPSEEK_TOKENS,
    GADRE,
    GADRE_C4,
    GADRE_REFINEDWEB,
    CLARK,
    KRAJEWSKI,
    KRAJEWSKI_DENSE,
    TAO,
    KUMAR,
    KUMAR_QUANTIZATION,
)


def preset_named(name: str) -> Preset:
    """The preset of this name. ValueError with the nearest one where there is none."""
    for preset in PRESETS:
        if preset.name == name:
            return preset
    near = difflib.get_close_matches(name, [preset.name for preset in PRESETS], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"no published law '{name}'; {hint}there are {', '.join(preset.name for preset in PRESETS)}")
