"""The figures of a report, each with the table it was drawn from, one a file.

    figure = accuracy_against_rank(data)
    figure.table            # the numbers, as a Table
    figure.wide, figure.narrow, figure.pdf

Axes show measured values only; nothing is smoothed, fitted or extrapolated.
"""

from lowrank_study.reporting.figures.accuracy import accuracy_against_rank
from lowrank_study.reporting.figures.cost import cost_by_method
from lowrank_study.reporting.figures.decay import singular_value_decay
from lowrank_study.reporting.figures.drawing import Figure
from lowrank_study.reporting.figures.energy_rank import energy_rank_against_adapter_rank
from lowrank_study.reporting.figures.heat_map import rank_heat_map

__all__ = [
    "Figure",
    "accuracy_against_rank",
    "cost_by_method",
    "energy_rank_against_adapter_rank",
    "rank_heat_map",
    "singular_value_decay",
]
