"""Columns that more than one table shows, so that a word means the same everywhere.

    columns=(*CONFIGURATION_COLUMNS, SEED, ...)

A column’s meaning is shown where its table is.
"""

from lowrank_study.reporting.display import Column

CONFIGURATION_COLUMNS = (
    Column(name="method", label="method", kind="text", meaning="how it was trained"),
    Column(name="target", label="target", kind="text", meaning="which matrices were adapted"),
    Column(name="adapter_rank", label="rank", kind="rank", meaning="configured adapter rank"),
)
LEARNING_RATE = Column(
    name="learning_rate", label="learning rate", kind="rate", meaning="peak rate"
)
SEED = Column(name="seed", label="seed", kind="rank", meaning="random seed")
LAYER = Column(name="layer", label="layer", kind="rank", meaning="layer of the model")
ROLE = Column(name="role", label="role", kind="text", meaning="which matrix")
TRAINABLE = Column(
    name="trainable_parameters", label="trainable", kind="count", meaning="trainable parameters"
)

_POSSIBLE = Column(
    name="largest_possible_rank",
    label="possible",
    kind="rank",
    meaning="largest possible rank: the adapter rank, or min(out, in)",
)
_ABOVE_NOISE = Column(
    name="median_gavish_donoho_rank",
    label="above noise (Gavish–Donoho)",
    kind="rank",
    meaning="median count of singular values above the Gavish–Donoho cut",
)
_COUNTS = (
    Column(name="resolvable", label="resolvable", kind="count", meaning="matrices above rounding"),
    Column(name="n", label="n", kind="count", meaning="matrices (seeds × modules)"),
)

MODULE_RANK_COLUMNS = (
    Column(
        name="median_energy_rank_90",
        label="energy rank 90 %",
        kind="rank",
        meaning="median over resolvable matrices",
    ),
    Column(name="min_energy_rank_90", label="least", kind="rank", meaning="of the matrices"),
    Column(name="max_energy_rank_90", label="most", kind="rank", meaning="of the matrices"),
    _POSSIBLE,
    Column(
        name="noise_energy_rank_90",
        label="pure noise",
        kind="count",
        meaning="90 % energy rank of independent Gaussian noise of this shape (computed)",
    ),
    _ABOVE_NOISE,
    Column(
        name="median_stable_rank", label="stable rank", kind="rate", meaning="‖ΔW‖²_F / σ₁², median"
    ),
    Column(
        name="median_relative_norm",
        label="‖ΔW‖ / ‖W0‖",
        kind="rate",
        meaning="Frobenius norms, median over matrices",
    ),
    *_COUNTS,
)
"""Of `rank_by_module`, behind the layer and the role."""

CONFIGURATION_RANK_COLUMNS = (
    Column(
        name="median_energy_rank_90",
        label="energy rank 90 %",
        kind="rank",
        meaning="median over resolvable matrices of all layers and seeds",
    ),
    Column(
        name="energy_rank_90_decile_1",
        label="10 % below",
        kind="rank",
        meaning="a tenth of the matrices lies below",
    ),
    Column(
        name="energy_rank_90_decile_9",
        label="90 % below",
        kind="rank",
        meaning="nine tenths of the matrices lie below",
    ),
    _POSSIBLE,
    Column(
        name="median_share_of_possible",
        label="share of possible",
        kind="percent",
        meaning="energy rank over largest possible rank, median",
    ),
    Column(
        name="median_effective_rank",
        label="effective rank",
        kind="rate",
        meaning="exp of the entropy of σ/Σσ (Roy and Vetterli), median",
    ),
    _ABOVE_NOISE,
    *_COUNTS,
    Column(name="seeds", label="seeds", kind="count", meaning="seeds"),
)
"""Of `rank_by_configuration` and `rank_by_layer`."""
