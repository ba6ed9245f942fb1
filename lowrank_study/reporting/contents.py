"""What a report says, before it takes the form of a page or of LaTeX.

    report = compose(study)
    report.parts[0].findings, report.parts[0].figures, report.parts[0].tables

One part a setting (a task with a base model), because only within a setting is anything
compared.
"""

from dataclasses import dataclass

import pandas as pd

from lowrank_study.reporting.display import Column, Table, counted, printable
from lowrank_study.reporting.figures import (
    CONFIGURATION_RANK_COLUMNS,
    MODULE_COLUMNS,
    Figure,
    SettingData,
    accuracy_against_rank,
    energy_rank_against_adapter_rank,
    rank_heat_map,
    singular_value_decay,
)
from lowrank_study.reporting.figures import (
    cost_by_method as draw_cost_by_method,
)
from lowrank_study.reporting.findings import Finding, completeness, findings
from lowrank_study.reporting.tables import (
    Setting,
    StudyTables,
    accuracy_by_rank,
    checked,
    cost_by_method,
    flat_provenance,
    rank_by_configuration,
    rank_by_layer,
    rank_by_module,
    settings_of,
    spectra_of_chosen,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the report says of one setting."""

    setting: Setting
    """the task and the model"""
    findings: list[Finding]
    """in words"""
    figures: list[Figure]
    """drawn, each with its numbers"""
    tables: list[Table]
    """condensed from the runs and spectra"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is written, before it takes a form."""

    study: StudyTables
    """the checked study"""
    facts: list[tuple[str, str]]
    """a few numbers for the head: what, how much"""
    completeness: Finding
    """how much of the plan is done"""
    parts: list[Part]
    """one a setting"""
    tables: list[Table]
    """of the whole study: runs, provenance"""
    data: list[Table]
    """given as CSV only, because they are long"""


def compose(study: StudyTables) -> Report:
    """Give the report of a study: its tables condensed, its figures drawn, its sentences."""
    study = checked(study)
    accuracy = accuracy_by_rank(study.runs)
    spectra = spectra_of_chosen(study, accuracy)
    settings = settings_of(study.runs)
    parts = []
    for number, setting in enumerate(settings, start=1):
        suffix = f"_{number}" if len(settings) > 1 else ""
        inside = setting.rows(spectra)
        data = SettingData(
            study=study,
            setting=setting,
            suffix=suffix,
            accuracy=setting.rows(accuracy),
            spectra=inside,
            modules=rank_by_module(inside),
            configurations=rank_by_configuration(inside),
        )
        parts.append(_part(data))
    return Report(
        study=study,
        facts=_facts(study, accuracy, settings),
        completeness=completeness(study),
        parts=parts,
        tables=[_runs_table(study.runs), _provenance_table(study)],
        data=[
            _long_table("spectra", "Spectra", study.spectra),
            _long_table("singular_values", "Singular values", study.singular_values),
        ],
    )


def _part(data: SettingData) -> Part:
    drawn = [
        accuracy_against_rank(data),
        singular_value_decay(data),
        rank_heat_map(data),
        energy_rank_against_adapter_rank(data),
        draw_cost_by_method(data),
    ]
    tables = [_accuracy_table(data), _cost_table(data)]
    if len(data.spectra):
        tables += [_configuration_table(data), _layer_table(data), _module_table(data)]
    return Part(
        setting=data.setting,
        findings=findings(data),
        figures=[figure for figure in drawn if figure is not None],
        tables=tables,
    )


def _facts(
    study: StudyTables, accuracy: pd.DataFrame, settings: list[Setting]
) -> list[tuple[str, str]]:
    chosen = accuracy[accuracy["chosen"] & (accuracy["n"] > 0)]
    seeds = sorted({int(count) for count in chosen["n"]})
    span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
    done = int((study.runs["status"] == "done").sum())
    facts = [
        ("runs done", f"{done} of {study.planned} planned"),
        ("configurations", f"{len(chosen)}"),
        ("seeds each", span),
        ("matrices analysed", f"{len(study.spectra):,}"),
    ]
    if len(settings) == 1:
        facts = [
            ("task", printable(settings[0].task)),
            ("base model", printable(settings[0].model)),
            *facts,
        ]
    return facts


_CONFIGURATION_COLUMNS = (
    Column(name="method", label="method", kind="text", meaning="how it was trained"),
    Column(name="target", label="target", kind="text", meaning="which matrices were adapted"),
    Column(name="adapter_rank", label="rank", kind="rank", meaning="configured adapter rank"),
)


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
            *_CONFIGURATION_COLUMNS,
            Column(name="learning_rate", label="learning rate", kind="rate", meaning="peak rate"),
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
            Column(
                name="trainable_parameters",
                label="trainable",
                kind="count",
                meaning="trainable parameters",
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
            *_CONFIGURATION_COLUMNS,
            Column(name="n", label="n", kind="count", meaning="done runs"),
            Column(
                name="trainable_parameters",
                label="trainable",
                kind="count",
                meaning="trainable parameters",
            ),
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
                name="peak_memory_bytes", label="peak memory", kind="bytes", meaning="of the run"
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
            "all seeds together. An adapter's energy rank can’t exceed its adapter rank."
        ),
        frame=data.configurations,
        columns=(*_CONFIGURATION_COLUMNS, *CONFIGURATION_RANK_COLUMNS),
    )


def _layer_table(data: SettingData) -> Table:
    return Table(
        name=f"rank_by_layer{data.suffix}",
        title="Rank of the updates by layer",
        note="One row a configuration and layer: medians over its resolvable matrices.",
        frame=rank_by_layer(data.spectra),
        columns=(
            *_CONFIGURATION_COLUMNS,
            MODULE_COLUMNS[0],
            *CONFIGURATION_RANK_COLUMNS,
        ),
    )


def _module_table(data: SettingData) -> Table:
    return Table(
        name=f"rank_by_module{data.suffix}",
        title="Rank of the updates by layer and module",
        note=(
            "One row a configuration, layer and role: medians over seeds. Rows without a layer "
            "are heads and embeddings. “pure noise” is computed, not measured: the 90 % energy "
            "rank of independent Gaussian entries of that shape (Marchenko and Pastur); it "
            "bounds nothing for an adapter, whose rank is fixed."
        ),
        frame=data.modules,
        columns=(*_CONFIGURATION_COLUMNS, *MODULE_COLUMNS),
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
            Column(name="seed", label="seed", kind="rank", meaning="random seed"),
            Column(name="learning_rate", label="learning rate", kind="rate", meaning="peak rate"),
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
