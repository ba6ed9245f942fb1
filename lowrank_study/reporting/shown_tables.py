"""The tables that a report shows: which columns, under which words.

    for table in tables_of_setting(data): print(table.title, table.note)

The CSV files hold every column; these are the ones to read.
"""

import pandas as pd

from lowrank_study.reporting.columns import (
    CONFIGURATION_COLUMNS,
    CONFIGURATION_RANK_COLUMNS,
    LAYER,
    LEARNING_RATE,
    MODULE_RANK_COLUMNS,
    ROLE,
    SEED,
    TRAINABLE,
)
from lowrank_study.reporting.display import Column, Table, counted, points
from lowrank_study.reporting.shown_controls import control_tables, truncation_tables
from lowrank_study.reporting.tables import (
    SettingData,
    StudyTables,
    best_rates,
    cost_by_method,
    flat_provenance,
    rank_by_layer,
)


def tables_of_setting(data: SettingData) -> list[Table]:
    """Give the tables of one setting: accuracy, what was tested, cost and ranks of updates."""
    tables = [_score_table(data)]
    if len(data.comparison):
        tables.append(_sufficient_table(data))
    if len(data.rates):
        tables.append(_rates_table(data))
    tables.append(_cost_table(data))
    if len(data.spectra):
        tables += [_configuration_table(data), _layer_table(data), _module_table(data)]
    return [*tables, *truncation_tables(data), *control_tables(data)]


def _rates_table(data: SettingData) -> Table:
    return Table(
        name=f"best_rates{data.suffix}",
        title="Learning rates chosen on validation",
        note=(
            "One row a configuration. A grid grows until its best rate has neighbours on both "
            "sides, or it has reached its limit; the two best rates are run with further seeds. "
            "Ratios are to full fine-tuning’s rate."
        ),
        frame=best_rates(data.rates),
        columns=(
            *CONFIGURATION_COLUMNS,
            Column("rule", "scaling", "text", "α, and the factor"),
            LEARNING_RATE,
            Column("ratio_to_full", "of full’s", "ratio", "rate ratio"),
            Column("validation_score", "validation accuracy", "share", "of the runs that chose it"),
            Column("rates_tried", "tried", "count", "rates tried"),
            Column("lowest_tried", "from", "rate", "lowest rate tried"),
            Column("highest_tried", "to", "rate", "highest rate tried"),
            Column("inside", "inside", "text", "whether it is no end"),
        ),
    )


def tables_of_study(study: StudyTables) -> list[Table]:
    """Give the tables of the whole study: its runs and its provenance."""
    return [_runs_table(study.runs), _provenance_table(study)]


def long_tables(study: StudyTables) -> list[Table]:
    """Give the tables that are CSV files only, because they are long."""
    tables = [
        _long_table("spectra", "Spectra", study.spectra),
        _long_table("singular_values", "Singular values", study.singular_values),
    ]
    if study.rates is not None:
        tables.append(_long_table("trials", "Runs that chose rates", study.rates))
    if study.truncation is not None:
        tables.append(_long_table("cuts", "Truncated updates", study.truncation))
    return tables


def _score_table(data: SettingData) -> Table:
    return Table(
        name=f"score_by_rank{data.suffix}",
        title="Accuracy by rank",
        note=(
            "One row a configuration and learning rate. The interval is the 95 % Student t "
            "interval of the mean over n seeds, mean ± t(0.975, n−1)·sd/√n; with one seed there "
            "is none. Figures and sentences use the rates marked “chosen”: best mean validation "
            "accuracy, among rates that lost no run if there are any."
        ),
        frame=data.accuracy,
        columns=(
            *CONFIGURATION_COLUMNS,
            LEARNING_RATE,
            Column("chosen", "chosen", "text", "used in figures and sentences"),
            Column("n", "n", "count", "done runs with a test accuracy"),
            Column("diverged", "diverged", "count", "runs that diverged"),
            Column("failed", "failed", "count", "runs that failed"),
            Column("mean_test_score", "test accuracy", "share", "mean over seeds"),
            Column("sd_test_score", "sd", "share", "over seeds, n − 1"),
            Column("test_low_95", "95 % low", "share", "of the mean"),
            Column("test_high_95", "95 % high", "share", "of the mean"),
            Column("mean_validation_score", "validation", "share", "mean validation accuracy"),
            Column("mean_train_score", "train", "share", "mean on training"),
            Column(
                "chance",
                "commonest class",
                "share",
                "accuracy of always answering the commonest class",
            ),
            Column(
                "test_standard_error",
                "test s.e.",
                "share",
                "sqrt(p(1−p)/test examples): error from the drawing of the test set",
            ),
            TRAINABLE,
        ),
    )


def _sufficient_table(data: SettingData) -> Table:
    margin = points(float(data.comparison["margin"].iloc[0]))
    return Table(
        name=f"sufficient_rank{data.suffix}",
        title="Sufficient rank",
        note=(
            f"One row a target and rank: its accuracy less full fine-tuning’s, over runs paired "
            f"by seed and test example, in points. Low and high are one-sided 95 % limits over "
            f"seeds and test examples (crossed random effects, Satterthwaite’s degrees of "
            f"freedom). A rank is sufficient when low is above −{margin}, tested from the highest "
            f"rank down to the first that fails or lost a run; inferior when high is below it, "
            f"from the lowest up; the data leave the others open. Retention is (a−c)/(f−c), c the "
            f"commonest class’s share, with Fieller’s 95 % interval over seeds and test examples; "
            f"where that is unbounded full fine-tuning itself is not shown to lie above chance."
        ),
        frame=data.comparison,
        columns=(
            *CONFIGURATION_COLUMNS,
            Column(
                "seeds",
                "pairs",
                "count",
                "seeds whose runs are both done and have kept their predictions",
            ),
            Column("lost", "lost", "count", "runs that diverged or failed"),
            Column("difference", "difference", "points", "mean, in points"),
            Column("lower_limit", "low", "points", "one-sided 95 % limit"),
            Column("upper_limit", "high", "points", "one-sided 95 % limit"),
            Column("decision", "decision", "text", "sufficient, inferior, or open"),
            Column(
                "retention",
                "retention",
                "percent",
                "of what full fine-tuning has above the commonest class",
            ),
            Column("retention_low_95", "95 % low", "percent", "of retention"),
            Column("retention_high_95", "95 % high", "percent", "of retention"),
            Column("retention_bounded", "bounded", "text", "whether the data bound the retention"),
        ),
    )


def _cost_table(data: SettingData) -> Table:
    return Table(
        name=f"cost_by_method{data.suffix}",
        title="Cost by method",
        note=(
            "One row a configuration: medians over its done runs, as recorded by the runs "
            "themselves. “of full” divides by the median of full fine-tuning in this study."
        ),
        frame=cost_by_method(data.setting.rows(data.study.runs), data.accuracy),
        columns=(
            *CONFIGURATION_COLUMNS,
            Column("n", "n", "count", "done runs"),
            TRAINABLE,
            Column("trainable_share", "of all", "percent", "trainable over all parameters"),
            Column("checkpoint_bytes", "checkpoint", "bytes", "on disk (1 kB = 1,000 bytes)"),
            Column("train_seconds", "time", "seconds", "training time"),
            Column("train_seconds_ratio", "time of full", "ratio", "ratio"),
            Column("min_train_seconds", "shortest", "seconds", "run"),
            Column("max_train_seconds", "longest", "seconds", "run"),
            Column("peak_memory_bytes", "peak memory", "bytes", "of the process"),
            Column("pack_size", "runs at once", "count", "trained together in one process"),
            Column("peak_memory_bytes_ratio", "memory of full", "ratio", "ratio"),
            Column("steps", "steps", "count", "optimiser steps"),
        ),
    )


def _configuration_table(data: SettingData) -> Table:
    return Table(
        name=f"rank_by_configuration{data.suffix}",
        title="Rank of the updates by configuration",
        note=(
            "One row a configuration: medians over the resolvable matrices inside the layers, "
            "all seeds together. An adapter’s energy rank can’t exceed its adapter rank."
        ),
        frame=data.configurations,
        columns=(*CONFIGURATION_COLUMNS, *CONFIGURATION_RANK_COLUMNS),
    )


def _layer_table(data: SettingData) -> Table:
    return Table(
        name=f"rank_by_layer{data.suffix}",
        title="Rank of the updates by layer",
        note="One row a configuration and layer: medians over its resolvable matrices.",
        frame=rank_by_layer(data.spectra),
        columns=(
            *CONFIGURATION_COLUMNS,
            LAYER,
            *CONFIGURATION_RANK_COLUMNS,
        ),
    )


def _module_table(data: SettingData) -> Table:
    return Table(
        name=f"rank_by_module{data.suffix}",
        title="Rank of the updates by layer and module",
        note=(
            "One row a configuration, layer and role: medians over seeds. Rows without a layer "
            "are heads and embeddings, named by their module. “pure noise” is computed, not "
            "measured: the 90 % energy rank of independent Gaussian entries of that shape "
            "(Marchenko and Pastur); it bounds nothing for an adapter, whose rank is fixed."
        ),
        frame=data.modules,
        columns=(*CONFIGURATION_COLUMNS, LAYER, ROLE, *MODULE_RANK_COLUMNS),
    )


def _runs_table(runs: pd.DataFrame) -> Table:
    return Table(
        name="runs",
        title="Every run",
        note="One row a run, whatever became of it; the CSV file holds every recorded column.",
        frame=runs,
        columns=(
            Column("run_id", "run", "text", "its name in the store"),
            Column("status", "status", "text", "done, diverged, failed"),
            SEED,
            LEARNING_RATE,
            Column("test_score", "test", "share", "test accuracy"),
            Column("validation_score", "validation", "share", "validation accuracy"),
            Column("test_macro_f1", "macro F1", "share", "on test"),
            Column("train_score", "train", "share", "on training data"),
            Column("steps", "steps", "count", "optimiser steps"),
            Column("train_seconds", "time", "seconds", "training"),
            Column("precision", "precision", "text", "of the arithmetic"),
            Column("message", "message", "text", "why it is not done"),
        ),
    )


def _provenance_table(study: StudyTables) -> Table:
    return Table(
        name="provenance",
        title="Provenance",
        note="Where these numbers come from.",
        frame=flat_provenance(study.provenance),
        columns=(
            Column("item", "item", "text", "what"),
            Column("value", "value", "text", "its value"),
        ),
    )


def _long_table(name: str, title: str, frame: pd.DataFrame) -> Table:
    note = f"{counted(len(frame), 'row')}; in the CSV file only."
    return Table(name=name, title=title, note=note, frame=frame, columns=())
