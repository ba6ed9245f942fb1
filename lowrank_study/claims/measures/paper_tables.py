"""Claims that a paper's table or figure answers, reproduced with this suite's own runs.

`experiments/reproduce.py papers=[...]` writes `results/papers/<name>.csv` (`reporting/papers.py`),
and these measures read that table.
"""

import math
from collections.abc import Mapping

import pandas as pd

from lowrank_study.claims.measures.evidence import Evidence
from lowrank_study.claims.measures.outcome import Interval, Lacking, Measured, Outcome, measure

Where = Mapping[str, object]
"""Column → the value of the wanted row."""


@measure
def paper_row(
    evidence: Evidence,
    paper: str,
    where: Where,
    minus: Where | None = None,
    over_noise: bool = False,
) -> Outcome:
    """Return our number in one row with its interval, or the difference of two rows.

    The table has no pairs of seeds, so the interval of a difference extends from the lowest to the
    highest value that both intervals allow. It covers more than 95 %.

    Args:
        evidence: The tables.
        paper: File in `conf/paper/`.
        where: The row.
        minus: The row to subtract.
        over_noise: Whether to divide each row by the value of noise of the same shape first.
    """
    found, how = _row(evidence, paper, where, over_noise=over_noise), _in_words(where)
    if minus is not None:
        other = _row(evidence, paper, minus, over_noise=over_noise)
        low, high = found.low - other.high, found.high - other.low
        found = Interval(value=found.value - other.value, low=low, high=high, label="")
        how += f" minus {_in_words(minus)}"
    of_noise = ", each over noise of the same shape" if over_noise else ""
    return Measured(values=(found,), how=f"conf/paper/{paper}.yaml, {how}{of_noise}")


def _row(evidence: Evidence, paper: str, where: Where, *, over_noise: bool) -> Interval:
    remedy = f"experiments/reproduce.py papers=[{paper}]"
    found = evidence.papers.get(paper)
    if found is None:
        raise Lacking(f"runs for the paper's table: {remedy}")
    for column, value in where.items():
        if column not in found:  # the table was written by an earlier version
            raise Lacking(f"a table of {paper} with a column {column}: {remedy}")
        found = found[found[column] == value]
    found = found[found["own"].notna()]
    if len(found) != 1:
        raise Lacking(f"one row of {paper} with {_in_words(where)}; it has {len(found)}")
    row = found.iloc[0]
    unit = float(row["of_noise"]) if over_noise else 1.0
    own, low, high = (float(row[column]) / unit for column in ("own", "low", "high"))
    low = -math.inf if pd.isna(low) else low
    return Interval(value=own, low=low, high=math.inf if pd.isna(high) else high, label="")


def _in_words(where: Where) -> str:
    return ", ".join(f"{column} {value}" for column, value in where.items())
