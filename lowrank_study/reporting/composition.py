"""What a report says, before it becomes a page, LaTeX or a record.

    report = compose(study)
    report.parts[0].answer, report.parts[0].sections

There is one part per setting (a task with a base model), because only runs of one setting are
compared. A study of several tasks may begin with a part across them.
"""

from dataclasses import dataclass

from lowrank_study.reporting.across import across_tasks
from lowrank_study.reporting.display import Table, printable
from lowrank_study.reporting.drawing.figure import Figure
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections import SECTIONS
from lowrank_study.reporting.sections.answer import answer
from lowrank_study.reporting.sections.completeness import completeness, is_complete
from lowrank_study.reporting.sections.provenance import long_tables, study_tables_shown
from lowrank_study.reporting.setting import SettingData, settings_data
from lowrank_study.reporting.study import StudyTables, checked

_ANSWERS = 2
"""Findings across tasks in the answer: the distances, and the ranks of the first method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the report says about one setting, or across all of them."""

    name: str
    """the setting for a heading; empty if the study has one setting"""
    title: str
    """the setting, also if the study has only this one"""
    answer: list[str]
    """which rank suffices and how sure that is, in at most five lines"""
    sections: list[Section]
    """one per question, in order"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is written, before it takes a form."""

    study: StudyTables
    """the checked study"""
    facts: list[tuple[str, str]]
    """a few numbers for the head"""
    completeness: Finding
    """how much of the plan is done, and what was left out"""
    is_complete: bool
    """whether every planned run is done and nothing was left out"""
    parts: list[Part]
    """one per setting, after the one across tasks"""
    tables: list[Table]
    """of the whole study: runs and provenance"""
    data: list[Table]
    """only CSV files, because they are long"""

    @property
    def sections(self) -> list[Section]:
        """Return the sections of all parts."""
        return [section for part in self.parts for section in part.sections]

    @property
    def figures(self) -> list[Figure]:
        """Return every figure."""
        return [figure for section in self.sections for figure in section.figures]

    @property
    def shown_tables(self) -> list[Table]:
        """Return every table that is shown."""
        return [*self.tables, *(table for section in self.sections for table in section.all_tables)]

    @property
    def gaps_first(self) -> list[str]:
        """Return the sentence that comes before the answer if something is missing."""
        return [] if self.is_complete else [self.completeness.text]

    @property
    def in_one_line(self) -> str:
        """Return completeness and answers as one paragraph, for a terminal."""
        lines = [self.completeness.text]
        for part in self.parts:
            lines += [f"{part.name}:"] if part.name else []
            lines += part.answer
        return " ".join(lines)


def compose(study: StudyTables) -> Report:
    """Return the report of a study with its sections made and its figures drawn."""
    study = checked(study)
    settings = settings_data(study)
    return Report(
        study=study,
        facts=_facts(study, settings),
        completeness=completeness(study),
        is_complete=is_complete(study),
        parts=[*_across(settings), *(_part(data, len(settings) == 1) for data in settings)],
        tables=study_tables_shown(study),
        data=long_tables(study),
    )


def _across(settings: list[SettingData]) -> list[Part]:
    section = across_tasks(settings)
    if section is None:
        return []
    answer = [finding.text for finding in section.findings[:_ANSWERS]]
    return [Part(name="Across tasks", title="Across tasks", answer=answer, sections=[section])]


def _part(data: SettingData, single: bool) -> Part:
    made = [make(data) for make in SECTIONS]
    title = f"{data.setting.task} on {data.setting.model}"
    return Part(
        name="" if single else title,
        title=title,
        answer=answer(data),
        sections=[section for section in made if section is not None],
    )


def _facts(study: StudyTables, settings: list[SettingData]) -> list[tuple[str, str]]:
    counts = [int(count) for data in settings for count in data.chosen["n"]]
    least, most = min(counts), max(counts)
    done = int((study.runs["status"] == "done").sum())
    facts = [
        ("runs done", f"{done} of {study.planned} planned"),
        ("configurations", f"{len(counts)}"),
        ("seeds each", f"{least}" if least == most else f"{least}–{most}"),
        ("matrices measured", f"{len(study.spectra):,}"),
    ]
    if len(settings) > 1:
        return facts
    setting = settings[0].setting
    return [("task", printable(setting.task)), ("base model", printable(setting.model)), *facts]
