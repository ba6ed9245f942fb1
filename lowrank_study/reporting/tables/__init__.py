"""The tidy tables that every figure and every sentence of the report is made from.

A study comes in as three frames (runs, spectra of their updates, singular values) and is
condensed to a handful of tables, each with one row per configuration:

    accuracy = score_by_rank(study.runs)   # test accuracy over seeds, with its interval

A *setting* is a task with a base model. A *configuration* is a method with its target and
adapter rank in one setting.
"""

from lowrank_study.answers.learning_rates import best_rates
from lowrank_study.answers.roles import ROLES, in_order, roles_inside
from lowrank_study.answers.rows import CONFIGURATION, groups, records
from lowrank_study.answers.scores import (
    at_several_scalings,
    chosen_runs,
    score_by_rank,
)
from lowrank_study.reporting.tables.cost import cost_by_method
from lowrank_study.reporting.tables.provenance import flat_provenance, shared_provenance
from lowrank_study.reporting.tables.setting import (
    Setting,
    SettingData,
    full_row,
    settings_data,
    settings_of,
)
from lowrank_study.reporting.tables.study import StudyTables, checked
from lowrank_study.reporting.tables.update_ranks import (
    rank_by_configuration,
    rank_by_layer,
    rank_by_module,
    spectra_of_chosen,
)

__all__ = [
    "CONFIGURATION",
    "ROLES",
    "Setting",
    "SettingData",
    "StudyTables",
    "at_several_scalings",
    "best_rates",
    "checked",
    "chosen_runs",
    "cost_by_method",
    "flat_provenance",
    "full_row",
    "groups",
    "in_order",
    "rank_by_configuration",
    "rank_by_layer",
    "rank_by_module",
    "records",
    "roles_inside",
    "score_by_rank",
    "settings_data",
    "settings_of",
    "shared_provenance",
    "spectra_of_chosen",
]
