"""Claims that a paper's table or figure answers, remade here with this suite's own runs.

`experiments/reproduce.py papers=[...]` measures them and writes `results/papers/<name>.csv`
(`reporting/papers.py`); here they are read.
"""

import math
from collections.abc import Mapping

import pandas as pd

from lowrank_study.claims.measures.evidence import Evidence
from lowrank_study.claims.measures.outcome import (
    Interval,
    Lacking,
    Measured,
    Outcome,
    measure,
)

Where = Mapping[str, object]
"""Column → the value that the wanted row has there."""


@measure
def paper_row(evidence: Evidence, paper: str, where: Where) -> Outcome:
    """Give the own number of one row with its interval over seeds."""
    row = _row(evidence, paper, where, over_noise=False)
    return Measured(values=(row,), how=f"conf/paper/{paper}.yaml, {_in_words(where)}")


@measure
def paper_rows_apart(
    evidence: Evidence, paper: str, where: Where, minus: Where, over_noise: bool = False
) -> Outcome:
    """Give the difference of two rows, or of their ratios to what noise of their shapes reads.

    The table keeps no pairs of seeds, so the interval reaches from the lowest that both
    intervals allow to the highest: it covers more than 95 %.
    """
    first, second = (_row(evidence, paper, each, over_noise=over_noise) for each in (where, minus))
    apart = Interval(
        value=first.value - second.value,
        low=first.low - second.high,
        high=first.high - second.low,
        label="",
    )
    of_noise = ", each over of_noise" if over_noise else ""
    how = f"conf/paper/{paper}.yaml, {_in_words(where)} minus {_in_words(minus)}{of_noise}"
    return Measured(values=(apart,), how=how)


def _row(evidence: Evidence, paper: str, where: Where, *, over_noise: bool) -> Interval:
    table = evidence.papers.get(paper)
    if table is None:
        raise Lacking(f"that paper's runs: experiments/reproduce.py papers=[{paper}]")
    found = table
    for column, value in where.items():
        if column not in found:  # the table is older than what it is asked
            raise Lacking(f"{paper} by {column}: experiments/reproduce.py papers=[{paper}]")
        found = found[found[column] == value]
    found = found[found["own"].notna()]
    if len(found) != 1:
        raise Lacking(f"one row of {paper} with {_in_words(where)}; it has {len(found)}")
    row = found.iloc[0]
    unit = float(row["of_noise"]) if over_noise else 1.0
    own, low, high = (float(row[column]) / unit for column in ("own", "low", "high"))
    return Interval(
        value=own,
        low=-math.inf if pd.isna(low) else low,
        high=math.inf if pd.isna(high) else high,
        label="",
    )


def _in_words(where: Where) -> str:
    return ", ".join(f"{column} {value}" for column, value in where.items())
