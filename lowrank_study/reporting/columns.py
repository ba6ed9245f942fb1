"""The columns that more than one table shows, so that a word means the same everywhere.

    columns(metric, "method target seed", Column("n", "n", "count", "done runs"))

A name stands for the shared column, `median_NAME` for the median of a measure of updates. `{score}`
in a label or a meaning is the metric's label. Differences of scores that aren't shares are written
like the scores.
"""

from dataclasses import replace

from lowrank_study.reporting.display import Column, Kind
from lowrank_study.spectra.measures import MEASURES, Measure
from lowrank_study.tasks.metric import Metric

_SHARED = (
    Column("method", "method", "text", "how the model was trained"),
    Column("target", "target", "text", "which matrices were adapted"),
    Column("adapter_rank", "rank", "rank", "configured adapter rank"),
    Column("rule", "scaling", "text", "α and the factor in front of B·A"),
    Column("learning_rate", "learning rate", "rate", "peak learning rate"),
    Column("seed", "seed", "rank", "random seed"),
    Column("layer", "layer", "rank", "layer of the model"),
    Column("role", "role", "text", "role of the matrix in its layer"),
    Column("trainable_parameters", "trainable", "count", "trainable parameters"),
    Column("checkpoint_bytes", "checkpoint", "bytes", "size on disk (1 kB = 1,000 bytes)"),
    Column("train_seconds", "time", "seconds", "training time"),
    Column("peak_memory_bytes", "peak memory", "bytes", "peak memory of the process"),
    Column("train_seconds_ratio", "time of full", "ratio", "time over full fine-tuning’s"),
    Column("peak_memory_bytes_ratio", "memory of full", "ratio", "memory over full fine-tuning’s"),
    Column("status", "status", "text", "done, diverged or failed"),
    Column("steps", "steps", "count", "optimizer steps"),
    Column("test_score", "test {score}", "decimal", "test {score} of the run"),
    Column("validation_score", "validation {score}", "decimal", "validation {score}"),
    Column("mean_test_score", "test {score}", "decimal", "mean over seeds"),
    Column("test_low_95", "95 % low", "decimal", "95 % interval of the mean, lower end"),
    Column("test_high_95", "95 % high", "decimal", "95 % interval of the mean, upper end"),
    Column("resolvable", "resolvable", "count", "matrices whose update stands above rounding"),
    Column("energy_rank_90_decile_1", "10 % below", "rank", "a tenth of the matrices lie below"),
    Column("energy_rank_90_decile_9", "90 % below", "rank", "nine tenths lie below"),
    Column(
        "median_share_of_possible",
        "share of possible",
        "percent",
        "energy rank over largest possible rank, median",
    ),
    Column("min_energy_rank_90", "least", "rank", "lowest of the matrices"),
    Column("max_energy_rank_90", "most", "rank", "highest of the matrices"),
    Column(
        "noise_energy_rank_90",
        "pure noise",
        "count",
        "90 % energy rank of independent Gaussian noise of this shape (computed)",
    ),
    Column(
        "largest_possible_rank",
        "possible",
        "rank",
        "largest possible rank: the adapter rank, or min(out, in)",
    ),
)
_KINDS: dict[str, Kind] = {"number": "rate", "percent": "percent"}


def _median(measure: Measure) -> Column:
    """Return the column of a measure's median over matrices."""
    kind: Kind = "rank" if measure.whole else _KINDS.get(measure.kind, "rate")
    return Column(f"median_{measure.name}", measure.label, kind, f"{measure.meaning}, median")


_BY_NAME = {column.name: column for column in [*_SHARED, *map(_median, MEASURES)]}


def columns(metric: Metric, *wanted: str | Column) -> tuple[Column, ...]:
    """Return shared columns by their names, several in a string, and other columns as they are."""
    found: list[Column] = []
    for each in wanted:
        found += [_BY_NAME[name] for name in each.split()] if isinstance(each, str) else [each]
    label = metric.label
    return tuple(
        replace(
            column,
            kind="decimal"
            if column.kind == "points" and metric.points_per_unit == 1
            else column.kind,
            label=column.label.replace("{score}", label),
            meaning=column.meaning.replace("{score}", label),
        )
        for column in found
    )
