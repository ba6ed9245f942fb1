"""The sections of a report, in order: one file a question.

    sections = [made for make in SECTIONS if (made := make(data)) is not None]

A section returns None if the study has nothing to show for its question. To add one, write
`section(data)` in a new file and name it here.
"""

from lowrank_study.reporting.sections import (
    controls,
    cost,
    decay,
    forgetting,
    functional_rank,
    heat_map,
    learning_rates,
    score,
    seeds,
    sufficient_rank,
    test_sets,
    tokens,
    training,
    update_rank,
)

SECTIONS = (
    score.section,
    sufficient_rank.section,
    test_sets.section,
    seeds.section,
    tokens.section,
    functional_rank.section,
    learning_rates.section,
    update_rank.section,
    heat_map.section,
    decay.section,
    training.section,
    forgetting.section,
    controls.section,
    cost.section,
)
