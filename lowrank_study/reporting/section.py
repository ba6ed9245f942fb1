"""One question of a report: its figures, its sentences, its caveats and its tables.

    section = score.section(data)
    section.figures, section.findings, section.reading, section.tables

Each file in `sections/` makes one; the pages put them in order and give them a form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_study.reporting.display import Table
from lowrank_study.reporting.drawing.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statement of a section."""

    topic: str
    """two to five words in front of it"""
    text: str
    """the statement, in whole sentences"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a report says about one question in one setting."""

    name: str
    """anchor on the page, different for every section of a report"""
    title: str
    """heading"""
    figures: Sequence[Figure] = ()
    """shown above the text"""
    findings: Sequence[Finding] = ()
    """the answer in words"""
    reading: Sequence[str] = ()
    """caveats, folded under “How to read this”"""
    tables: Sequence[Table] = ()
    """the numbers, folded"""

    @property
    def all_tables(self) -> list[Table]:
        """The section's tables and those of its figures."""
        return [*self.tables, *(figure.table for figure in self.figures)]
