"""One task with one base model: a report compares only within such a setting.

for data in settings_data(study):
data.setting.task, data.scores, data.spectra
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lowrank_study.answers.learning_rates import rates_by_configuration
from lowrank_study.answers.rows import records
from lowrank_study.answers.scores import chosen_runs, score_by_rank
from lowrank_study.reporting.columns import columns
from lowrank_study.reporting.display import Column
from lowrank_study.reporting.study import StudyTables
from lowrank_study.reporting.update_ranks import (
    rank_by_configuration,
    rank_by_module,
    spectra_of_chosen,
)
from lowrank_study.tasks.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A task with a base model."""

    task: str
    """name of the task"""
    model: str
    """name of the base model"""

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a table that belong to this setting."""
        return frame[(frame["task"] == self.task) & (frame["model"] == self.model)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingData:
    """The tables of one setting, from which its sections are made."""

    study: StudyTables
    """the checked study"""
    setting: Setting
    """which task and model"""
    suffix: str
    """appended to the names of files; empty if the study has one setting"""
    scores: pd.DataFrame
    """`score_by_rank`, this setting's rows"""
    spectra: pd.DataFrame
    """`spectra_of_chosen`, this setting's rows"""
    modules: pd.DataFrame
    """`rank_by_module`, this setting's rows"""
    configurations: pd.DataFrame
    """`rank_by_configuration`, this setting's rows"""
    rates: pd.DataFrame
    """`rates_by_configuration`, this setting's rows; empty if no rate was chosen"""
    comparison: pd.DataFrame
    """`StudyTables.comparison`, this setting's rows"""

    @property
    def metric(self) -> Metric:
        """Return the metric of the task."""
        return self.study.metric

    def columns(self, *wanted: str | Column) -> tuple[Column, ...]:
        """Return the columns of a table; see `lowrank_study.reporting.columns`."""
        return columns(self.metric, *wanted)

    @property
    def chosen(self) -> pd.DataFrame:
        """Return `scores` at the chosen learning rates, of configurations with a done run."""
        return self.scores[self.scores["chosen"] & (self.scores["n"] > 0)]

    @property
    def runs(self) -> pd.DataFrame:
        """Return the runs at the chosen learning rates, done or not."""
        return chosen_runs(self.setting.rows(self.study.runs), self.scores)

    def best(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the row with the best mean test score."""
        sign = 1 if self.metric.higher_is_better else -1
        return max(rows, key=lambda row: sign * row["mean_test_score"])


def settings_data(study: StudyTables) -> list[SettingData]:
    """Condense a checked study to the tables of its settings."""
    scores = score_by_rank(study.runs, study.metric)
    spectra = spectra_of_chosen(study, scores)
    rates = study.runs.iloc[:0] if study.rates is None else study.rates
    rates = rates_by_configuration(rates, study.metric)
    settings = settings_of(study.runs)
    parts = []
    for number, setting in enumerate(settings, start=1):
        inside = setting.rows(spectra)
        parts.append(
            SettingData(
                study=study,
                setting=setting,
                suffix=f"_{number}" if len(settings) > 1 else "",
                scores=setting.rows(scores),
                spectra=inside,
                modules=rank_by_module(inside),
                configurations=rank_by_configuration(inside),
                rates=setting.rows(rates),
                comparison=setting.rows(study.comparison),
            )
        )
    return parts


def settings_of(runs: pd.DataFrame) -> list[Setting]:
    """Return the settings that have a done run, ordered by name."""
    done = runs[(runs["status"] == "done") & runs["test_score"].notna()]
    pairs = sorted(set(zip(done["task"], done["model"], strict=True)))
    return [Setting(task=task, model=model) for task, model in pairs]


def full_row(data: SettingData) -> dict[str, Any] | None:
    """Return the row of full fine-tuning at its chosen rate, or None without a done run."""
    rows = data.chosen[data.chosen["method"] == "full"]
    return records(rows)[0] if len(rows) else None
