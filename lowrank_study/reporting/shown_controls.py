"""The tables of truncated updates and of controls that a report shows, where there are any.

    truncation_tables(data), control_tables(data)

The figures of the same numbers show the same columns.
"""

from lowrank_study.reporting.columns import ROLE
from lowrank_study.reporting.display import Column, Table
from lowrank_study.reporting.tables import SettingData
from lowrank_study.reporting.tables.controls import control_overlap, control_ranks
from lowrank_study.reporting.tables.truncation import accuracy_by_kept_rank

CUT_COLUMNS = (
    Column(
        name="scope",
        label="kept of ΔW",
        kind="text",
        meaning="all: rank k of every matrix; noise_cut: what stands above each one’s noise; "
        "layers, roles: all of one alone",
    ),
    Column(name="part", label="part", kind="text", meaning="the one layer or role"),
    Column(
        name="kept_rank", label="k", kind="rank", meaning="directions kept of every matrix’s ΔW"
    ),
)
KEPT_COLUMNS = (
    Column(
        name="mean_difference",
        label="to whole ΔW",
        kind="share",
        meaning="mean difference to the whole update of the same seeds",
    ),
    Column(name="difference_low_95", label="95 % low", kind="share", meaning="of the difference"),
    Column(name="difference_high_95", label="95 % high", kind="share", meaning="of the difference"),
    Column(
        name="energy_kept",
        label="energy kept",
        kind="percent",
        meaning="share of Σ‖ΔW‖²_F over all matrices",
    ),
    Column(
        name="kept_directions",
        label="directions kept",
        kind="rank",
        meaning="over all matrices together, mean over seeds",
    ),
)
MEAN_COLUMNS = (
    Column(name="mean_test_accuracy", label="test accuracy", kind="share", meaning="mean"),
    Column(name="test_low_95", label="95 % low", kind="share", meaning="of the mean"),
    Column(name="test_high_95", label="95 % high", kind="share", meaning="of the mean"),
    Column(name="n", label="n", kind="count", meaning="seeds"),
)
RANK_COLUMNS = (
    Column(name="median_energy_rank_90", label="energy rank 90 %", kind="rank", meaning="median"),
    Column(name="median_energy_rank_99", label="energy rank 99 %", kind="rank", meaning="median"),
    Column(
        name="median_effective_rank",
        label="effective rank",
        kind="rank",
        meaning="exp of the entropy of σ/Σσ (Roy and Vetterli), median",
    ),
    Column(
        name="median_participation_ratio",
        label="participation",
        kind="rank",
        meaning="(Σσ²)² / Σσ⁴, median",
    ),
    Column(
        name="median_stable_rank", label="stable rank", kind="rate", meaning="‖ΔW‖²_F / σ₁², median"
    ),
    Column(
        name="median_gavish_donoho_rank",
        label="above noise",
        kind="rank",
        meaning="singular values above the Gavish–Donoho cut, median",
    ),
    Column(
        name="median_relative_norm",
        label="‖ΔW‖ / ‖W0‖",
        kind="rate",
        meaning="Frobenius norms, median over matrices",
    ),
    Column(name="resolvable", label="resolvable", kind="count", meaning="matrices above rounding"),
    Column(name="n", label="n", kind="count", meaning="matrices"),
)
"""Of `control_ranks` and `training_ranks`."""


def truncation_tables(data: SettingData) -> list[Table]:
    """Give the table of truncated updates."""
    frame = accuracy_by_kept_rank(data)
    if not len(frame):
        return []
    return [
        Table(
            name=f"accuracy_by_kept_rank{data.suffix}",
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
    what = Column(name="control", label="control", kind="text", meaning="what was measured")
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
                    Column(name="directions", label="k", kind="rank", meaning="directions of each"),
                    *(
                        Column(
                            name=f"median_similarity_{side}{end}",
                            label=f"{label}{', chance' if end else ''}",
                            kind="share",
                            meaning=f"{'expected of random directions' if end else 'median φ'}",
                        )
                        for side, label in (("right", "inputs"), ("left", "outputs"))
                        for end in ("", "_chance")
                    ),
                    Column(name="n", label="n", kind="count", meaning="pairs of matrices"),
                ),
            )
        )
    return tables
