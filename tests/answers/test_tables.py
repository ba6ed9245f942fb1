"""Check the table of runs."""

from pathlib import Path

import pytest

from lowrank_study.answers.tables import runs_table
from lowrank_study.config.run import compose
from lowrank_study.runs.store import TrainedRun


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/home/ann/models/bert can't be loaded", "…/bert can't be loaded"),
        ("No such file: '/srv/ann/reviews.csv'", "No such file: '…/reviews.csv'"),
        ("https://huggingface.co/a/b is gone; 3/4 done", None),
    ],
)
def test_messages_in_tables_contain_no_folder(message: str, shown: str | None) -> None:
    run = TrainedRun(spec=compose(), status="failed", record={"message": message}, folder=Path())
    assert runs_table([run])["message"].item() == (shown or message)


def test_peft_adapters_differ_by_rank_scaling_and_label() -> None:
    options = ["{r: 4, use_dora: true}", "{r: 4}", "{r: 4, lora_dropout: 0.1}"]
    peft = ["method=peft", "method.peft_type=LORA"]
    runs = [
        TrainedRun(
            spec=compose(*peft, f"method.options={option}"),
            status="done",
            record={},
            folder=Path(),
        )
        for option in options
    ]
    table = runs_table(runs)
    assert table["method"].tolist() == ["peft_dora", "peft_lora", "peft_lora (lora_dropout=0.1)"]
    assert table["adapter_rank"].tolist() == [4, 4, 4]
    assert table["scaling"].tolist() == [2.0, 2.0, 2.0]
