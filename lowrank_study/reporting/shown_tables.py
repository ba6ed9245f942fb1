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
    tables = [_accuracy_table(data)]
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
            "sides, or it has reached its limit; ratios are to full fine-tuning’s rate."
        ),
        frame=best_rates(data.rates),
        columns=(
            *CONFIGURATION_COLUMNS,
            Column(name="rule", label="scaling", kind="text", meaning="α, and the factor"),
            LEARNING_RATE,
            Column(name="ratio_to_full", label="of full’s", kind="ratio", meaning="rate ratio"),
            Column(
                name="validation_accuracy",
                label="validation accuracy",
                kind="share",
                meaning="of the runs that chose it",
            ),
            Column(name="rates_tried", label="tried", kind="count", meaning="rates tried"),
            Column(name="lowest_tried", label="from", kind="rate", meaning="lowest rate tried"),
            Column(name="highest_tried", label="to", kind="rate", meaning="highest rate tried"),
            Column(name="inside", label="inside", kind="text", meaning="whether it is no end"),
        ),
    )


def tables_of_study(study: StudyTables) -> list[Table]:
    """Give the tables of the whole study: its runs and its provenance."""
    return [_runs_table(study.runs), _provenance_table(study)]


def long_tables(study: StudyTables) -> list[Table]:
    """Give the tables that are CSV files only, because they are long."""
    return [
        _long_table("spectra", "Spectra", study.spectra),
        _long_table("singular_values", "Singular values", study.singular_values),
    ]


def _accuracy_table(data: SettingData) -> Table:
    return Table(
        name=f"accuracy_by_rank{data.suffix}",
        title="Accuracy by rank",
        note=(
            "One row a configuration and learning rate. The interval is the 95 % Student t "
            "interval of the mean over n seeds, mean ± t(0.975, n−1)·sd/√n; with one seed there "
            "is none. Figures and sentences use the rates marked “chosen”: best mean validation "
            "accuracy, among rates at which no run diverged if there are any."
        ),
        frame=data.accuracy,
        columns=(
            *CONFIGURATION_COLUMNS,
            LEARNING_RATE,
            Column(
                name="chosen", label="chosen", kind="text", meaning="used in figures and sentences"
            ),
            Column(name="n", label="n", kind="count", meaning="done runs with a test accuracy"),
            Column(name="diverged", label="diverged", kind="count", meaning="runs that diverged"),
            Column(name="failed", label="failed", kind="count", meaning="runs that failed"),
            Column(
                name="mean_test_accuracy",
                label="test accuracy",
                kind="share",
                meaning="mean over seeds",
            ),
            Column(name="sd_test_accuracy", label="sd", kind="share", meaning="over seeds, n − 1"),
            Column(name="test_low_95", label="95 % low", kind="share", meaning="of the mean"),
            Column(name="test_high_95", label="95 % high", kind="share", meaning="of the mean"),
            Column(
                name="mean_validation_accuracy",
                label="validation",
                kind="share",
                meaning="mean validation accuracy",
            ),
            Column(
                name="mean_train_accuracy", label="train", kind="share", meaning="mean on training"
            ),
            Column(
                name="majority_accuracy",
                label="commonest class",
                kind="share",
                meaning="accuracy of always answering the commonest class",
            ),
            Column(
                name="test_standard_error",
                label="test s.e.",
                kind="share",
                meaning="sqrt(p(1−p)/test examples): error from the drawing of the test set",
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
            f"rank down to the first that fails; inferior when high is below it, from the lowest "
            f"up; the data leave the others open. Retention is (a−c)/(f−c), c the commonest "
            f"class’s share, with Fieller’s 95 % interval over seeds; where that is unbounded "
            f"full fine-tuning itself is not shown to lie above chance."
        ),
        frame=data.comparison,
        columns=(
            *CONFIGURATION_COLUMNS,
            Column(
                name="seeds",
                label="pairs",
                kind="count",
                meaning="seeds whose runs are both done and have kept their predictions",
            ),
            Column(name="difference", label="difference", kind="points", meaning="mean, in points"),
            Column(name="lower_limit", label="low", kind="points", meaning="one-sided 95 % limit"),
            Column(name="upper_limit", label="high", kind="points", meaning="one-sided 95 % limit"),
            Column(
                name="decision",
                label="decision",
                kind="text",
                meaning="sufficient, inferior, or open",
            ),
            Column(
                name="retention",
                label="retention",
                kind="percent",
                meaning="of what full fine-tuning has above the commonest class",
            ),
            Column(
                name="retention_low_95", label="95 % low", kind="percent", meaning="of retention"
            ),
            Column(
                name="retention_high_95", label="95 % high", kind="percent", meaning="of retention"
            ),
            Column(
                name="retention_bounded",
                label="bounded",
                kind="text",
                meaning="whether the data bound the retention",
            ),
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
            Column(name="n", label="n", kind="count", meaning="done runs"),
            TRAINABLE,
            Column(
                name="trainable_share",
                label="of all",
                kind="percent",
                meaning="trainable over all parameters",
            ),
            Column(
                name="checkpoint_bytes",
                label="checkpoint",
                kind="bytes",
                meaning="on disk (1 kB = 1,000 bytes)",
            ),
            Column(name="train_seconds", label="time", kind="seconds", meaning="training time"),
            Column(name="train_seconds_ratio", label="time of full", kind="ratio", meaning="ratio"),
            Column(name="min_train_seconds", label="shortest", kind="seconds", meaning="run"),
            Column(name="max_train_seconds", label="longest", kind="seconds", meaning="run"),
            Column(
                name="peak_memory_bytes",
                label="peak memory",
                kind="bytes",
                meaning="of the process",
            ),
            Column(
                name="pack_size",
                label="runs at once",
                kind="count",
                meaning="trained together in one process",
            ),
            Column(
                name="peak_memory_bytes_ratio",
                label="memory of full",
                kind="ratio",
                meaning="ratio",
            ),
            Column(name="steps", label="steps", kind="count", meaning="optimiser steps"),
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
            Column(name="run_id", label="run", kind="text", meaning="its name in the store"),
            Column(name="status", label="status", kind="text", meaning="done, diverged, failed"),
            SEED,
            LEARNING_RATE,
            Column(name="test_accuracy", label="test", kind="share", meaning="test accuracy"),
            Column(
                name="validation_accuracy",
                label="validation",
                kind="share",
                meaning="validation accuracy",
            ),
            Column(name="test_macro_f1", label="macro F1", kind="share", meaning="on test"),
            Column(name="train_accuracy", label="train", kind="share", meaning="on training data"),
            Column(name="steps", label="steps", kind="count", meaning="optimiser steps"),
            Column(name="train_seconds", label="time", kind="seconds", meaning="training"),
            Column(name="precision", label="precision", kind="text", meaning="of the arithmetic"),
            Column(name="message", label="message", kind="text", meaning="why it is not done"),
        ),
    )


def _provenance_table(study: StudyTables) -> Table:
    return Table(
        name="provenance",
        title="Provenance",
        note="Where these numbers come from.",
        frame=flat_provenance(study.provenance),
        columns=(
            Column(name="item", label="item", kind="text", meaning="what"),
            Column(name="value", label="value", kind="text", meaning="its value"),
        ),
    )


def _long_table(name: str, title: str, frame: pd.DataFrame) -> Table:
    note = f"{counted(len(frame), 'row')}; in the CSV file only."
    return Table(name=name, title=title, note=note, frame=frame, columns=())
