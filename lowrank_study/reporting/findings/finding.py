"""One statement of the summary.

    Finding(topic="Completeness", text="2 of 2 planned runs are done.", source="runs")

Each names the table it was computed from, so that it can be looked up.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statement and the table it was computed from."""

    topic: str
    """two or three words in front of it"""
    text: str
    """the statement, in whole sentences"""
    source: str
    """stem of the table that holds its numbers"""
