"""That tables of runs can be published."""

from pathlib import Path

import pytest

from lowrank_study.config import compose
from lowrank_study.runs import TrainedRun
from lowrank_study.study.tables import runs_table


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/home/ann/models/bert can't be loaded", "…/bert can't be loaded"),
        ("No such file: '/srv/ann/reviews.csv'", "No such file: '…/reviews.csv'"),
        ("https://huggingface.co/a/b is gone; 3/4 done", None),
    ],
)
def test_a_message_names_no_folder(message: str, told: str | None) -> None:
    run = TrainedRun(spec=compose(), status="failed", record={"message": message}, folder=Path())
    assert runs_table([run])["message"].item() == (told or message)
