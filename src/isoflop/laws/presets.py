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

from isoflop.laws.families import DATA_CONSTRAINED
from isoflop.laws.forms import Array
from isoflop.laws.formula import Formula, user_formula

Status = Literal["reproduced", "primary", "secondary"]

CHINCHILLA = "E + A/N^alpha + B/D^beta"
ALL = "N counts every parameter; C = 6 N D"


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
    source="Hoffmann et al. 2022, section 3.3 and appendix D.3 (1.69, 406.4, 410.7, .34, .28 rounded)",
    status="secondary",
    note="not the optimum of its own data: see besiroglu-2024. Rounded, its D/N at 5.76e23 FLOPs changes by a third",
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
    note="no irreducible loss; decay, warm-up and the head's FLOPs bend its exponents (Porian et al. 2024)",
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
    convention="N counts total parameters without embeddings; 64 times expansion",
    fitted={"G": (1.0, 16.0)},
    source="Krajewski et al. 2024, eq. 9 and table 2; given rounded",
    status="secondary",
)

PRESETS = (
    HOFFMANN,
    BESIROGLU,
    KAPLAN,
    MUENNIGHOFF,
    LLAMA_3,
    PORIAN,
    STEP_LAW_RATE,
    STEP_LAW_BATCH,
    DEEPSEEK_RATE,
    DEEPSEEK_BATCH,
    GADRE,
    KRAJEWSKI,
)


def preset_named(name: str) -> Preset:
    """The preset of this name. ValueError with the nearest one where there is none."""
    for preset in PRESETS:
        if preset.name == name:
            return preset
    near = difflib.get_close_matches(name, [preset.name for preset in PRESETS], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"no published law '{name}'; {hint}there are {', '.join(preset.name for preset in PRESETS)}")
