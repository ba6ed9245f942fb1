"""The figures of a report, each with the table it was drawn from, one a file.

    figures = [draw(data) for draw in FIGURES]
    figures[0].table                            # the numbers, as a Table
    figures[0].wide, figures[0].narrow, figures[0].pdf

Axes show measured values only; nothing is smoothed, fitted or extrapolated.
"""

from lowrank_study.reporting.figures.cost import cost_by_method
from lowrank_study.reporting.figures.decay import singular_value_decay
from lowrank_study.reporting.figures.drawing import Figure
from lowrank_study.reporting.figures.energy_rank import energy_rank_against_adapter_rank
from lowrank_study.reporting.figures.functional_rank import functional_rank
from lowrank_study.reporting.figures.heat_map import rank_heat_map
from lowrank_study.reporting.figures.rates import rate_curves
from lowrank_study.reporting.figures.score import score_against_rank
from lowrank_study.reporting.figures.training import rank_along_training

FIGURES = (
    score_against_rank,
    functional_rank,
    rate_curves,
    singular_value_decay,
    rank_heat_map,
    energy_rank_against_adapter_rank,
    rank_along_training,
    cost_by_method,
)
"""Those of a report, in their order; each gives None where there is nothing to draw."""

__all__ = [
    "FIGURES",
    "Figure",
    "cost_by_method",
    "energy_rank_against_adapter_rank",
    "functional_rank",
    "rank_along_training",
    "rank_heat_map",
    "rate_curves",
    "score_against_rank",
    "singular_value_decay",
]
