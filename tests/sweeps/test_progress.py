"""What a sweep shows while it runs."""

import pytest

from lowrank_study.sweeps import progress as progress_module
from lowrank_study.sweeps.progress import Display


def test_a_log_gets_one_line_an_ended_run_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    costs = {"full": 1.5, "a": 1.0, "b": 1.0, "old": 1.0}
    with Display() as display:
        stage = display.stage("s", costs, {"old": 1.0})
        stage.show({"old": 1.0, "full": 0.0})
        now[0] += 60  # 1.0 of the 3.5 that were left
        stage.show({"old": 1.0, "full": 0.2, "a": 0.7})
        stage.show({"old": 1.0, "full": 1 / 3, "a": 1.0})
        now[0] += 60
        stage.show({"old": 1.0, "full": 1.0, "a": 1.0, "b": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[2/4] a, 1:20 left", "[3/4] full, 0:20 left"]


def test_the_time_left_is_known_before_the_first_run_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    stage = Display().stage("s", {"a": 1.0, "b": 1.0}, {})
    assert stage.seconds_left({"a": 0.0}) is None
    now[0] = 30.0
    assert stage.seconds_left({"a": 0.25, "b": 0.25}) == 90.0
