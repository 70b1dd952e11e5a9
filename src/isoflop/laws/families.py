"""The named forms that `isoflop fit --form` knows, each a formula with bounds, starts and a source.

Columns have fixed names here (N, D, U, C, ...); the reader of a table says which of its columns they are. N and D are
in parameters and tokens, C in FLOPs, losses in nats a token, unless a form says otherwise. Where a paper's constants
are not terms of a sum (Kaplan's N_c), the formula uses the size of the term and `derived` gives the constant.

The whole list is in `FORMS`, a tuple to iterate over; each is also a name of this module.
"""

from isoflop.laws.formula import Coefficient, Formula

EXPONENTS = (0.1, 0.2, 0.35, 0.6)
MOST = 10.0  # published exponents lie in 0.05 .. 1; an optimum out here is a degenerate one
SMALLEST_EXPONENT = 1e-3


def _floor(name: str = "E") -> Coefficient:
    return Coefficient(name, meaning="irreducible loss")


def _size(name: str) -> Coefficient:
    return Coefficient(name, meaning="amplitude of its term")


def _exponent(name: str, starts: tuple[float, ...] = EXPONENTS) -> Coefficient:
    return Coefficient(name, 0.0, MOST, starts, meaning="exponent")


def _positive_exponent(name: str, starts: tuple[float, ...] = (0.05, 0.1, 0.3)) -> Coefficient:
    return Coefficient(name, SMALLEST_EXPONENT, MOST, starts, meaning="exponent")


CHINCHILLA = Formula(
    "chinchilla",
    "E + A/N^alpha + B/D^beta",
    ("N", "D"),
    (_floor(), _size("A"), _size("B"), _exponent("alpha"), _exponent("beta")),
    derived=(("a", "beta/(alpha + beta)"),),
    source="Hoffmann et al. 2022, eq. 2; `isoflop.laws.fit` fits it faster, this one with parameters held or informed",
)

CHINCHILLA_EQUAL = Formula(
    "chinchilla-equal",
    "E + A/N^alpha + B/D^alpha",
    ("N", "D"),
    (_floor(), _size("A"), _size("B"), _exponent("alpha")),
    derived=(("a", "alpha/(alpha + alpha)"),),
    source="Hoffmann et al. 2022, eq. 2, with alpha = beta (as Muennighoff et al. 2023 fit it)",
)

KAPLAN = Formula(
    "kaplan",
    "((A/N^alpha_N)^(1/alpha_D) + (B/D^alpha_D)^(1/alpha_D))^alpha_D",
    ("N", "D"),
    (
        Coefficient("A", unit="N^alpha_N", starts=(0.6, 0.9), meaning="N_c^alpha_N"),
        Coefficient("B", unit="D^alpha_D", starts=(0.6, 0.9), meaning="D_c^alpha_D"),
        _positive_exponent("alpha_N"),
        _positive_exponent("alpha_D"),
    ),
    derived=(("N_c", "A^(1/alpha_N)"), ("D_c", "B^(1/alpha_D)")),
    source="Kaplan et al. 2020, eq. 1.5: no floor; N without embeddings",
)

KAPLAN_N = Formula(
    "kaplan-n",
    "A/N^alpha_N",
    ("N",),
    (_size("A"), _positive_exponent("alpha_N")),
    derived=(("N_c", "A^(1/alpha_N)"),),
    source="Kaplan et al. 2020, eq. 1.1: data without limit",
)

KAPLAN_D = Formula(
    "kaplan-d",
    "B/D^alpha_D",
    ("D",),
    (_size("B"), _positive_exponent("alpha_D")),
    derived=(("D_c", "B^(1/alpha_D)"),),
    source="Kaplan et al. 2020, eq. 1.2: models without limit, stopped early",
)

POWER = Formula(
    "power",
    "E + A/x^alpha",
    ("x",),
    (_floor(), _size("A"), _exponent("alpha")),
    source="Hestness et al. 2017; Henighan et al. 2020: one size, with a floor",
)

BROKEN_POWER = Formula(
    "broken-power",
    "E + A*x^(-c0)*(1 + (x/d1)^(1/f1))^(-c1*f1)",
    ("x",),
    (
        _floor(),
        Coefficient("A", unit="x^c0", starts=(0.3, 0.8), meaning="amplitude"),
        Coefficient("c0", 0.0, MOST, (0.1, 0.3), meaning="exponent before the break"),
        Coefficient("c1", -MOST, MOST, (-0.1, 0.3), meaning="change of the exponent at the break"),
        Coefficient("d1", unit="x", starts=(3.0, 30.0, 300.0), meaning="where it breaks"),
        Coefficient("f1", 0.05, 3.0, (0.3, 1.0), meaning="width of the break, in natural logarithms"),
    ),
    source="Caballero et al. 2023, eq. 1, with one break",
)

OVER_TRAINING = Formula(
    "over-training",
    "E + (a*m^eta + b*m^(-eta))/C^eta",
    ("C", "m"),
    (_floor(), _size("a"), _size("b"), Coefficient("eta", 0.0, 3.0, (0.05, 0.1, 0.2, 0.4), meaning="exponent")),
    derived=(("best_ratio", "(b/a)^(1/(2*eta))"),),
    source="Gadre et al. 2024, eq. 4: compute C = 6 N D and tokens a parameter m = D/N, alpha = beta = 2 eta",
)

DATA_CONSTRAINED = Formula(
    "data-constrained",
    "E + A/(min(N, UN) + min(N, UN)*RN*(1 - exp(-max(N/UN - 1, 0)/RN)))^alpha"
    " + B/(min(U, D) + min(U, D)*RD*(1 - exp(-max(D/U - 1, 0)/RD)))^alpha",
    ("N", "D", "U", "UN"),
    (
        _floor(),
        _size("A"),
        _size("B"),
        _exponent("alpha", (0.2, 0.35, 0.5)),
        Coefficient("RN", 1e-3, 1e4, (2.0, 20.0), meaning="R_N*: half-life of excess parameters"),
        Coefficient("RD", 1e-3, 1e4, (3.0, 15.0, 50.0), meaning="R_D*: half-life of repeated tokens"),
    ),
    source="Muennighoff et al. 2023, eq. 5, 6: U unique tokens; UN the parameters that are optimal for them",
)

REPEATS = Formula(
    "repeats",
    "E + A/N^alpha + B/(min(U, D) + min(U, D)*RD*(1 - exp(-max(D/U - 1, 0)/RD)))^beta",
    ("N", "D", "U"),
    (
        _floor(),
        _size("A"),
        _size("B"),
        _exponent("alpha", (0.2, 0.4)),
        _exponent("beta", (0.2, 0.4)),
        Coefficient("RD", 1e-3, 1e4, (3.0, 15.0, 50.0), meaning="R_D*: half-life of repeated tokens"),
    ),
    source="Muennighoff et al. 2023, eq. 5, with the decay of repeated tokens alone",
)

VOCABULARY = Formula(
    "vocabulary",
    "-E + A/N^alpha + B/V^beta + F/D^gamma",
    ("N", "V", "D"),
    (
        Coefficient("E", -float("inf"), starts=(), meaning="minus the floor"),
        _size("A"),
        _size("B"),
        _size("F"),
        _exponent("alpha", (0.1, 0.3, 0.6)),
        _exponent("beta", (0.1, 0.4, 0.8)),
        _exponent("gamma", (0.2, 0.5)),
    ),
    log=False,
    source="Tao et al. 2024, eq. 6: N and V parameters outside and in the vocabulary; loss against a unigram, negative",
)

EXPERTS_LOG = Formula(
    "experts-unified",
    "exp(a*log(N) + b*log(X) + c*log(N)*log(X) + d)",
    ("N", "X"),
    (
        Coefficient("a", -1.0, 1.0, (-0.1, -0.05)),
        Coefficient("b", -1.0, 1.0, (-0.1, -0.3)),
        Coefficient("c", -0.5, 0.5, (0.0, 0.01)),
        Coefficient("d", -float("inf"), starts=(1.0, 3.0)),
    ),
    source="Clark et al. 2022, eq. 7: N dense parameters, X experts (transformed, where they saturate)",
)

EXPERTS_GRANULAR = Formula(
    "experts-granular",
    "c + (g/G^gamma + a)/N^alpha + b/D^beta",
    ("N", "D", "G"),
    (
        Coefficient("c", meaning="irreducible loss"),
        _size("g"),
        _size("a"),
        _size("b"),
        _exponent("gamma", (0.3, 0.6)),
        _exponent("alpha", (0.1, 0.3)),
        _exponent("beta", (0.1, 0.3)),
    ),
    source="Krajewski et al. 2024, eq. 9: N total parameters, G granularity, at one expansion rate",
)

EXPERTS_SPARSE = Formula(
    "experts-sparse",
    "E + A/N^alpha + B/D^beta + F/(1 - S)^lam + H/((1 - S)^delta*N^gamma)",
    ("N", "D", "S"),
    (
        _floor(),
        _size("A"),
        _size("B"),
        _size("F"),
        _size("H"),
        _exponent("alpha", (0.2, 0.4)),
        _exponent("beta", (0.2, 0.4)),
        Coefficient("lam", -MOST, MOST, (0.1, -0.2), meaning="exponent of 1 - S"),
        Coefficient("delta", -MOST, MOST, (-0.1, 0.2), meaning="exponent of 1 - S"),
        _exponent("gamma", (0.2, 0.5)),
    ),
    source="Abnar et al. 2025, eq. 5: N total parameters, S the share of experts that are idle",
)

EXPERTS_ACTIVE = Formula(
    "experts-active",
    "E + A/(N^alpha*X^gamma) + B/D^beta",
    ("N", "D", "X"),
    (_floor(), _size("A"), _size("B"), _exponent("alpha"), _exponent("gamma", (0.1, 0.3)), _exponent("beta")),
    source="ours: N active parameters, X the ratio of total to active ones",
)

LEARNING_RATE = Formula(
    "learning-rate",
    "K*N^(-a)*D^b",
    ("N", "D"),
    (_size("K"), Coefficient("a", -2.0, 2.0, (0.2, 0.7)), Coefficient("b", -2.0, 2.0, (0.0, 0.3))),
    source="Li et al. 2025 (Step Law): the best learning rate over N without embeddings and D",
)

BATCH_SIZE = Formula(
    "batch-size",
    "K*D^b",
    ("D",),
    (_size("K"), Coefficient("b", -2.0, 2.0, (0.3, 0.6))),
    source="Li et al. 2025 (Step Law): the best batch, in tokens, over D",
)

LEARNING_RATE_BATCH = Formula(
    "learning-rate-batch",
    "E + A/N^alpha + B/D^beta + h*(log(lr) - log(K) + a*log(N) - b*log(D))^2 + k*(log(batch) - log(Q) - q*log(D))^2",
    ("N", "D", "lr", "batch"),
    (
        _floor(),
        _size("A"),
        _size("B"),
        _size("h"),
        _size("k"),
        _exponent("alpha", (0.2, 0.4)),
        _exponent("beta", (0.2, 0.4)),
        Coefficient("K", unit="lr*N^a/D^b", starts=(2.0, 8.0), meaning="the best learning rate is K N^-a D^b"),
        Coefficient("a", -2.0, 2.0, (0.5,)),
        Coefficient("b", -2.0, 2.0, (0.2,)),
        Coefficient("Q", unit="batch/D^q", starts=(2.0, 8.0), meaning="the best batch is Q D^q"),
        Coefficient("q", -2.0, 2.0, (0.4,)),
    ),
    source="a bowl about Step Law's optima (Li et al. 2025) on Hoffmann's law",
)

PRECISION = Formula(
    "precision",
    "E + A/(N*(1 - exp(-P/g)))^alpha + B/D^beta",
    ("N", "D", "P"),
    (
        _floor(),
        _size("A"),
        _size("B"),
        _exponent("alpha", (0.2, 0.4)),
        _exponent("beta", (0.2, 0.4)),
        Coefficient("g", 0.05, 50.0, (1.0, 3.0), meaning="bits at which a parameter counts 63 %"),
    ),
    source="Kumar et al. 2024, eq. 4: trained in P bits, weights, activations and cache alike",
)

QUANTIZATION = Formula(
    "quantization",
    "K*D^gamma_D/N^gamma_N*exp(-P/gamma_P)",
    ("N", "D", "P"),
    (
        _size("K"),
        Coefficient("gamma_D", 0.0, 3.0, (0.3, 0.6)),
        Coefficient("gamma_N", 0.0, 3.0, (0.3, 0.6)),
        Coefficient("gamma_P", 0.05, 10.0, (0.5, 1.0)),
    ),
    source="Kumar et al. 2024, eq. 2: what quantizing to P bits after training adds to the loss",
)

PARALLEL = Formula(
    "parallel",
    "E + A/(N*(1 + k*log(S)))^alpha",
    ("N", "S"),
    (_floor(), _size("A"), _exponent("alpha"), Coefficient("k", 0.0, 10.0, (0.2, 0.6))),
    source="Chen et al. 2025 (ParScale), eq. 5: S parallel streams, one amount of data",
)

TASK_ACCURACY = Formula(
    "task-accuracy",
    "low + (high - low)*sigmoid(k*(L0 - L))",
    ("L",),
    (
        Coefficient("low", 0.0, 1.0, (0.05, 0.25, 0.5), meaning="accuracy of guessing"),
        Coefficient("high", 0.0, 1.0, (0.7, 1.0), meaning="accuracy at no loss"),
        Coefficient("k", 0.0, 1000.0, (1.0, 3.0, 10.0), meaning="steepness, a nat"),
        Coefficient("L0", unit="L", starts=(1.1, 1.5, 2.5), meaning="loss halfway"),
    ),
    log=False,
    source="Bhagia et al. 2024, eq. 3: accuracy from a task's loss, which a law forecasts",
)

FORMS = (
    CHINCHILLA,
    CHINCHILLA_EQUAL,
    KAPLAN,
    KAPLAN_N,
    KAPLAN_D,
    POWER,
    BROKEN_POWER,
    OVER_TRAINING,
    DATA_CONSTRAINED,
    REPEATS,
    VOCABULARY,
    EXPERTS_LOG,
    EXPERTS_GRANULAR,
    EXPERTS_SPARSE,
    EXPERTS_ACTIVE,
    LEARNING_RATE,
    BATCH_SIZE,
    LEARNING_RATE_BATCH,
    PRECISION,
    QUANTIZATION,
    PARALLEL,
    TASK_ACCURACY,
)


def form_named(name: str) -> Formula:
    """The form of this name. ValueError with the nearest one where there is none."""
    import difflib

    for form in FORMS:
        if form.name == name:
            return form
    names = [form.name for form in FORMS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"--form {name}: no such form; {hint}there are {', '.join(names)}")
