"""Columns that more than one table shows, so that a word means the same everywhere.

    columns=(*CONFIGURATION_COLUMNS, SEED, ...)

A column’s meaning is shown where its table is.
"""

from lowrank_study.reporting.display import Column

CONFIGURATION_COLUMNS = (
    Column("method", "method", "text", "how it was trained"),
    Column("target", "target", "text", "which matrices were adapted"),
    Column("adapter_rank", "rank", "rank", "configured adapter rank"),
)
LEARNING_RATE = Column("learning_rate", "learning rate", "rate", "peak rate")
SEED = Column("seed", "seed", "rank", "random seed")
LAYER = Column("layer", "layer", "rank", "layer of the model")
ROLE = Column("role", "role", "text", "which matrix")
TRAINABLE = Column("trainable_parameters", "trainable", "count", "trainable parameters")

_POSSIBLE = Column(
    "largest_possible_rank",
    "possible",
    "rank",
    "largest possible rank: the adapter rank, or min(out, in)",
)
_ABOVE_NOISE = Column(
    "median_gavish_donoho_rank",
    "above noise (Gavish–Donoho)",
    "rank",
    "median count of singular values above the Gavish–Donoho cut",
)
_COUNTS = (
    Column("resolvable", "resolvable", "count", "matrices above rounding"),
    Column("n", "n", "count", "matrices (seeds × modules)"),
)

MODULE_RANK_COLUMNS = (
    Column("median_energy_rank_90", "energy rank 90 %", "rank", "median over resolvable matrices"),
    Column("min_energy_rank_90", "least", "rank", "of the matrices"),
    Column("max_energy_rank_90", "most", "rank", "of the matrices"),
    _POSSIBLE,
    Column(
        "noise_energy_rank_90",
        "pure noise",
        "count",
        "90 % energy rank of independent Gaussian noise of this shape (computed)",
    ),
    _ABOVE_NOISE,
    Column("median_stable_rank", "stable rank", "rate", "‖ΔW‖²_F / σ₁², median"),
    Column("median_relative_norm", "‖ΔW‖ / ‖W0‖", "rate", "Frobenius norms, median over matrices"),
    *_COUNTS,
)
"""Of `rank_by_module`, behind the layer and the role."""

CONFIGURATION_RANK_COLUMNS = (
    Column(
        "median_energy_rank_90",
        "energy rank 90 %",
        "rank",
        "median over resolvable matrices of all layers and seeds",
    ),
    Column("energy_rank_90_decile_1", "10 % below", "rank", "a tenth of the matrices lies below"),
    Column(
        "energy_rank_90_decile_9", "90 % below", "rank", "nine tenths of the matrices lie below"
    ),
    _POSSIBLE,
    Column(
        "median_share_of_possible",
        "share of possible",
        "percent",
        "energy rank over largest possible rank, median",
    ),
    Column(
        "median_effective_rank",
        "effective rank",
        "rate",
        "exp of the entropy of σ/Σσ (Roy and Vetterli), median",
    ),
    _ABOVE_NOISE,
    *_COUNTS,
    Column("seeds", "seeds", "count", "seeds"),
)
"""Of `rank_by_configuration` and `rank_by_layer`."""
