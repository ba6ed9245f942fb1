"""What a report says, before it takes the form of a page or of LaTeX.

    report = compose(study)
    report.parts[0].findings, report.parts[0].figures, report.parts[0].tables

One part a setting (a task with a base model), because only within a setting is anything
compared.
"""

from dataclasses import dataclass

from lowrank_study.reporting.display import Table, printable
from lowrank_study.reporting.figures import FIGURES, Figure
from lowrank_study.reporting.findings import Finding, completeness, findings
from lowrank_study.reporting.shown_tables import long_tables, tables_of_setting, tables_of_study
from lowrank_study.reporting.tables import (
    Setting,
    SettingData,
    StudyTables,
    checked,
    settings_data,
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
    """how much of the plan is done, and what was left out"""
    parts: list[Part]
    """one a setting"""
    tables: list[Table]
    """of the whole study: runs, provenance"""
    data: list[Table]
    """given as CSV only, because they are long"""


def compose(study: StudyTables) -> Report:
    """Give the report of a study: its tables condensed, its figures drawn, its sentences."""
    study = checked(study)
    settings = settings_data(study)
    return Report(
        study=study,
        facts=_facts(study, settings),
        completeness=completeness(study),
        parts=[_part(data) for data in settings],
        tables=tables_of_study(study),
        data=long_tables(study),
    )


def _part(data: SettingData) -> Part:
    drawn = [draw(data) for draw in FIGURES]
    return Part(
        setting=data.setting,
        findings=findings(data),
        figures=[figure for figure in drawn if figure is not None],
        tables=tables_of_setting(data),
    )


def _facts(study: StudyTables, settings: list[SettingData]) -> list[tuple[str, str]]:
    counts = [int(count) for data in settings for count in data.chosen["n"]]
    least, most = min(counts), max(counts)
    done = int((study.runs["status"] == "done").sum())
    facts = [
        ("runs done", f"{done} of {study.planned} planned"),
        ("configurations", f"{len(counts)}"),
        ("seeds each", f"{least}" if least == most else f"{least}–{most}"),
        ("matrices analysed", f"{len(study.spectra):,}"),
    ]
    if len(settings) > 1:
        return facts
    setting = settings[0].setting
    return [("task", printable(setting.task)), ("base model", printable(setting.model)), *facts]
