"""The tables of truncated updates and of controls that a report shows, where there are any.

    truncation_tables(data), control_tables(data)

The figures of the same numbers show the same columns.
"""

from lowrank_study.answers.functional_rank import score_by_kept_rank
from lowrank_study.reporting.columns import ROLE
from lowrank_study.reporting.display import Column, Table
from lowrank_study.reporting.tables import SettingData
from lowrank_study.reporting.tables.controls import control_overlap, control_ranks

CUT_COLUMNS = (
    Column(
        "scope",
        "kept of ΔW",
        "text",
        "all: rank k of every matrix; noise_cut: what stands above each one’s noise; "
        "layers, roles: all of one alone",
    ),
    Column("part", "part", "text", "the one layer or role"),
    Column("kept_rank", "k", "rank", "directions kept of every matrix’s ΔW"),
)
KEPT_COLUMNS = (
    Column(
        "mean_difference",
        "to whole ΔW",
        "share",
        "mean difference to the whole update of the same seeds",
    ),
    Column("difference_low_95", "95 % low", "share", "of the difference"),
    Column("difference_high_95", "95 % high", "share", "of the difference"),
    Column("energy_kept", "energy kept", "percent", "share of Σ‖ΔW‖²_F over all matrices"),
    Column(
        "kept_directions", "directions kept", "rank", "over all matrices together, mean over seeds"
    ),
)
MEAN_COLUMNS = (
    Column("mean_test_score", "test accuracy", "share", "mean"),
    Column("test_low_95", "95 % low", "share", "of the mean"),
    Column("test_high_95", "95 % high", "share", "of the mean"),
    Column("n", "n", "count", "seeds"),
)
RANK_COLUMNS = (
    Column("median_energy_rank_90", "energy rank 90 %", "rank", "median"),
    Column("median_energy_rank_99", "energy rank 99 %", "rank", "median"),
    Column(
        "median_effective_rank",
        "effective rank",
        "rank",
        "exp of the entropy of σ/Σσ (Roy and Vetterli), median",
    ),
    Column("median_participation_ratio", "participation", "rank", "(Σσ²)² / Σσ⁴, median"),
    Column("median_stable_rank", "stable rank", "rate", "‖ΔW‖²_F / σ₁², median"),
    Column(
        "median_gavish_donoho_rank",
        "above noise",
        "rank",
        "singular values above the Gavish–Donoho cut, median",
    ),
    Column("median_relative_norm", "‖ΔW‖ / ‖W0‖", "rate", "Frobenius norms, median over matrices"),
    Column("resolvable", "resolvable", "count", "matrices above rounding"),
    Column("n", "n", "count", "matrices"),
)
"""Of `control_ranks` and `training_ranks`."""


def truncation_tables(data: SettingData) -> list[Table]:
    """Give the table of truncated updates."""
    frame = score_by_kept_rank(data.study.truncation, data.runs)
    if not len(frame):
        return []
    return [
        Table(
            name=f"score_by_kept_rank{data.suffix}",
            title="Accuracy of truncated updates",
            note=(
                "One row a cut of full fine-tuning’s ΔW. Biases, norms and the new head keep "
                "their tuned values in all of them: with k = 0 they are tuned alone. Intervals "
                "are 95 % Student t intervals of the mean over seeds."
            ),
            frame=frame,
            columns=(*CUT_COLUMNS, *MEAN_COLUMNS, *KEPT_COLUMNS),
        )
    ]


def control_tables(data: SettingData) -> list[Table]:
    """Give the tables of what the measures read where there is nothing to find."""
    tables = []
    ranks, overlap = control_ranks(data), control_overlap(data)
    what = Column("control", "control", "text", "what was measured")
    if len(ranks):
        tables.append(
            Table(
                name=f"control_ranks{data.suffix}",
                title="What the rank measures read of nothing",
                note=(
                    "Medians over the resolvable matrices inside the layers; an empty role holds "
                    "all. trained: the updates of full fine-tuning; shuffled_labels: the same "
                    "seeds on labels dealt out anew; noise: independent Gaussian entries of the "
                    "same shapes and norms; weight_decay: −c·W0, what decay alone takes away."
                ),
                frame=ranks,
                columns=(what, ROLE, *RANK_COLUMNS),
            )
        )
    if len(overlap):
        tables.append(
            Table(
                name=f"control_overlap{data.suffix}",
                title="Overlap of updates across seeds",
                note=(
                    "Median φ(k, k) of the k leading singular directions of two updates, on the "
                    "side of the inputs and of the outputs, over matrices and pairs of seeds; an "
                    "empty role holds all. By chance: k over the dimension. noise_pair: two "
                    "Gaussian noises of the same shapes."
                ),
                frame=overlap,
                columns=(
                    what,
                    ROLE,
                    Column("directions", "k", "rank", "directions of each"),
                    *(
                        Column(
                            f"median_similarity_{side}{end}",
                            f"{label}{', chance' if end else ''}",
                            "share",
                            f"{'expected of random directions' if end else 'median φ'}",
                        )
                        for side, label in (("right", "inputs"), ("left", "outputs"))
                        for end in ("", "_chance")
                    ),
                    Column("n", "n", "count", "pairs of matrices"),
                ),
            )
        )
    return tables
