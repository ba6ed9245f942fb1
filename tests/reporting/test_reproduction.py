"""Experiments are forecast, trained, studied, reported and recorded in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_study.config.run import RunConfig, Stopping, compose
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.papers.tables import load_paper
from lowrank_study.reporting import papers as papers_module
from lowrank_study.reporting import reproduction
from lowrank_study.reporting.papers import record_papers, write_paper
from lowrank_study.reporting.reproduction import plan_of
from lowrank_study.runs.store import TrainedRun
from lowrank_study.sweeps import measured_spectra
from lowrank_study.sweeps.forecast import Forecast


def ended(configs: Sequence[RunConfig], *statuses: str) -> list[TrainedRun]:
    """Return the first runs of a sweep, which ended in these ways."""
    return [
        TrainedRun(spec=config.spec, status=status, record={"message": "why"}, folder=Path())
        for config, status in zip(configs, statuses, strict=False)
    ]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, in order; nothing is trained."""
    calls: list[str] = []

    def train(configs: Sequence[RunConfig], *, rule: None) -> list[TrainedRun]:
        calls.append(f"train {configs[0].sweep}")
        return ended(configs, "done")

    def unmeasured(*_: object, **__: object) -> dict[str, str]:
        return {}

    def report(name: str, *, margin: float | str, folder: Path, **_: object) -> tuple[Path, str]:
        calls.append(f"report {name} at {margin} in {folder.name}")
        return folder / "report.html", "found"

    def record(_: str, *, name: str, **__: object) -> Path:
        calls.append(f"record {name}")
        return Path(name)

    monkeypatch.setattr(measured_spectra, "without_spectra", unmeasured)
    monkeypatch.setattr(reproduction, "sweep_of", train)
    monkeypatch.setattr(reproduction, "report_sweep", report)
    monkeypatch.setattr(reproduction, "record_sweep", record)
    monkeypatch.setattr(reproduction, "truncate_sweep", lambda r: calls.append(f"cut {r.sweep}"))
    monkeypatch.setattr(
        reproduction,
        "measure_controls",
        lambda r: calls.append(f"controls {r.sweep}"),
    )
    return calls


def test_everything_is_done_in_order(done: list[str], tmp_path: Path) -> None:
    names = ["flagship_rotten_tomatoes", "rank_sweep"]
    plan = plan_of(
        names,
        [],
        results=tmp_path,
        updates=["flagship_rotten_tomatoes"],
    )
    lines = list(plan.carry_out(record="day"))
    assert done == [
        "train flagship_rotten_tomatoes",
        "cut flagship_rotten_tomatoes",
        "controls flagship_rotten_tomatoes",
        "report flagship_rotten_tomatoes at auto in flagship_rotten_tomatoes",
        "record day_flagship_rotten_tomatoes",
        "train rank_sweep",
        "report rank_sweep at auto in rank_sweep",
        "record day_rank_sweep",
    ]
    assert any("report.html: found" in line for line in lines)


def test_an_experiment_of_a_paper_is_trained_and_not_reported(
    done: list[str], tmp_path: Path
) -> None:
    plan = plan_of([], [load_paper("lora_table16")], results=tmp_path, updates=["rank_sweep"])
    with pytest.raises(InputError, match="no sweep 'paper_lora_table16'"):
        list(plan.carry_out(record="day"))
    assert done == ["train paper_lora_table16"]


def test_lost_runs_are_reported_last(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        reproduction, "sweep_of", lambda configs, rule: ended(configs, "done", "failed")
    )
    with pytest.raises(Unfinished, match=r"failed: .*: why\nsweep rank_sweep: 1 of 2 runs"):
        list(plan_of(["rank_sweep"], [], results=tmp_path).carry_out(record="day"))
    assert done[-1] == "record day_rank_sweep"


def test_an_experiment_without_a_done_run_ends_the_plan(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "sweep_of", lambda configs, rule: ended(configs, "failed"))
    with pytest.raises(Unfinished, match="1 of 1 runs failed"):
        list(plan_of(["rank_sweep"], [], results=tmp_path).carry_out(record="day"))
    assert done == []


def test_a_scale_has_names_of_its_own(done: list[str], tmp_path: Path) -> None:
    papers = [load_paper("lora_table16")]
    plan = plan_of(["paper_lora_table6"], papers, results=tmp_path, scale="paper")
    assert list(plan.sweeps) == ["paper_lora_table6_paper", "paper_lora_table16_paper"]
    for name, configs in plan.sweeps.items():
        assert {config.sweep for config in configs} == {name}
        assert {config.spec.model.name for config in configs} == {"roberta"}
    assert [paper.name for paper in plan.papers] == ["lora_table16_paper"]


def test_papers_are_recorded_with_what_they_were_made_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paper = load_paper("lora_table6")
    record = {
        "test": {"accuracy": 0.7},
        "examples": {"train": 100},
        "steps": 7,
        "provenance": {"commit": "abc"},
    }
    run = TrainedRun(spec=compose(), status="done", record=record, folder=tmp_path)
    monkeypatch.setattr(papers_module, "runs_of", lambda *_: [run])
    notes = tmp_path / "records" / "day_papers" / "NOTES.md"
    notes.parent.mkdir(parents=True)
    notes.write_text("found")
    other = load_paper("lora_table5")
    for each in (paper, other):
        write_paper(each, [run], tmp_path / "papers")
    folder = record_papers([paper], results=tmp_path, name="day_papers")
    assert "(lora_table6.md): minilm on rotten_tomatoes" in (folder / "README.md").read_text()
    assert "lora_table6 / commit,abc" in (folder / "provenance.csv").read_text()
    assert (folder / "lora_table6.csv").is_file()
    assert notes.read_text() == "found"
    record_papers([other], results=tmp_path, name="day_papers")
    listed = (folder / "README.md").read_text()
    assert "(lora_table5.md)" in listed
    assert "(lora_table6.md): minilm on rotten_tomatoes" in listed
    items = [row.partition(",")[0] for row in (folder / "provenance.csv").read_text().splitlines()]
    assert {item.partition(" / ")[0] for item in items[1:]} == {"lora_table5", "lora_table6"}
    assert len(items) == len(set(items))


def test_without_a_name_no_record_is_kept(done: list[str], tmp_path: Path) -> None:
    list(plan_of(["rank_sweep"], [], results=tmp_path).carry_out(record=""))
    assert not [call for call in done if call.startswith("record")]


def test_the_forecast_lists_each_experiment_and_the_total(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        "rank_sweep": Forecast(mean=1200.0, least=900.0, most=1500.0),
        "paper_lora_table7": Forecast(mean=60.0, least=60.0, most=60.0),
    }
    monkeypatch.setattr(reproduction, "forecasts", lambda planned: {n: found[n] for n in planned})
    paper = load_paper("lora_table7")
    plan = plan_of(["rank_sweep"], [paper], results=tmp_path, updates=["rank_sweep", "other"])
    assert plan.in_words().splitlines() == [
        "rank_sweep: about 20 min (15 to 25 min)",
        "paper_lora_table7: about 60 s",
        "total: about 21 min (16 to 26 min); runs that have ended are not trained again",
        "truncated updates and controls take more time: rank_sweep",
    ]


def test_the_forecast_of_a_sequential_sweep_is_a_range(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forecasts(planned: Mapping[str, Sequence[RunConfig]]) -> dict[str, Forecast]:
        minutes = {name: 60.0 * len(configs) for name, configs in planned.items()}
        return {name: Forecast(mean=m, least=m, most=m) for name, m in minutes.items()}

    monkeypatch.setattr(reproduction, "forecasts", forecasts)
    plan = plan_of(["rank_sweep"], [], results=tmp_path)
    stopping = Stopping(first=2, step=1, spending="pocock")
    configs = [replace(config, stopping=stopping) for config in plan.sweeps["rank_sweep"]]
    lines = replace(plan, sweeps={"rank_sweep": configs}).in_words().splitlines()
    assert lines[0].startswith("rank_sweep: about 42 min to 63 min; runs that have ended are not")
    several = replace(plan, sweeps={"one": configs, "two": configs[:3]}).in_words().splitlines()
    assert several[2].startswith("total: about 44 min to 66 min; ")


def test_a_paper_without_runs_is_refused(done: list[str], tmp_path: Path) -> None:
    plan = plan_of([], [load_paper("lora_table7")], results=tmp_path)
    with pytest.raises(InputError, match="no sweep 'paper_lora_table7'"):
        list(plan.carry_out(record=""))
