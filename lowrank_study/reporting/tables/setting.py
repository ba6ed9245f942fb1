"""One task with one base model: what is compared is compared within one of these.

    for data in settings_data(study):
        data.setting.task, data.accuracy, data.spectra

Every table of one is its rows of the table of the whole study.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lowrank_study.answers.learning_rates import rates_by_configuration
from lowrank_study.answers.rows import records
from lowrank_study.answers.scores import chosen_runs, score_by_rank
from lowrank_study.reporting.tables.study import StudyTables
from lowrank_study.reporting.tables.update_ranks import (
    rank_by_configuration,
    rank_by_module,
    spectra_of_chosen,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A task with a base model: what is compared is compared within one of these."""

    task: str
    """name of the task"""
    model: str
    """name of the base model"""

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Give the rows of a table that belong to this setting."""
        return frame[(frame["task"] == self.task) & (frame["model"] == self.model)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingData:
    """The tables of one setting that its figures and sentences are made from."""

    study: StudyTables
    """the checked study"""
    setting: Setting
    """which task and model"""
    suffix: str
    """appended to the names of files; empty where the study has one setting"""
    accuracy: pd.DataFrame
    """`score_by_rank`, this setting's rows"""
    spectra: pd.DataFrame
    """`spectra_of_chosen`, this setting's rows"""
    modules: pd.DataFrame
    """`rank_by_module`, this setting's rows"""
    configurations: pd.DataFrame
    """`rank_by_configuration`, this setting's rows"""
    rates: pd.DataFrame
    """`rates_by_configuration`, this setting's rows; none where no rate was chosen"""
    comparison: pd.DataFrame
    """`StudyTables.comparison`, this setting's rows"""

    @property
    def chosen(self) -> pd.DataFrame:
        """`accuracy` at the chosen learning rates, of configurations with a done run."""
        return self.accuracy[self.accuracy["chosen"] & (self.accuracy["n"] > 0)]

    @property
    def runs(self) -> pd.DataFrame:
        """The runs at the chosen learning rates, whatever became of them."""
        return chosen_runs(self.setting.rows(self.study.runs), self.accuracy)


def settings_data(study: StudyTables) -> list[SettingData]:
    """Condense a checked study to the tables of its settings."""
    accuracy = score_by_rank(study.runs)
    spectra = spectra_of_chosen(study, accuracy)
    rates = rates_by_configuration(study.runs.iloc[:0] if study.rates is None else study.rates)
    settings = settings_of(study.runs)
    parts = []
    for number, setting in enumerate(settings, start=1):
        inside = setting.rows(spectra)
        parts.append(
            SettingData(
                study=study,
                setting=setting,
                suffix=f"_{number}" if len(settings) > 1 else "",
                accuracy=setting.rows(accuracy),
                spectra=inside,
                modules=rank_by_module(inside),
                configurations=rank_by_configuration(inside),
                rates=setting.rows(rates),
                comparison=setting.rows(study.comparison),
            )
        )
    return parts


def settings_of(runs: pd.DataFrame) -> list[Setting]:
    """Give the settings that have a done run, in order of their names."""
    done = runs[(runs["status"] == "done") & runs["test_score"].notna()]
    pairs = sorted(set(zip(done["task"], done["model"], strict=True)))
    return [Setting(task=task, model=model) for task, model in pairs]


def full_row(data: SettingData) -> dict[str, Any] | None:
    """Give the row of full fine-tuning at its chosen rate, if it was run and a run is done."""
    rows = data.chosen[data.chosen["method"] == "full"]
    return records(rows)[0] if len(rows) else None
