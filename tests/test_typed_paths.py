"""Every command accepts every path that the file system allows, without Hydra quotes.

The commands run in this process up to where they have read the path; `test_commands.py` trains in
such a folder.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_study.errors import InputError
from tests.conftest import RunCommand

NAMES = [
    *("run (copy)", "lr=1e-4,r=8", "a,b", "Bücher", "模型", "two words", " space before", "a: b"),
    *("it's", 'say "so"', "'quoted'", '"quoted"', "[a]", "{a: b}", "a}b]c)", "${a}", "a$HOME"),
    *("$5", "#1", "a#b", "back\\slash", "end\\", "~", "~a", "+a", "-a", "--a", "=", "a=b=c", "*?"),
    *("a|b&c;d", "true", "1e3", "007", "new\nline", "tab\there", "a@b", "%", "😀"),
]
SCRIPTS = (
    *("analysis/report", "analysis/record", "analysis/measure_controls", "analysis/check_claims"),
    "experiments/truncate",
)
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def typed(key: str, path: str, turn: int) -> list[str]:
    """Return a setting in one of three spellings, in turn."""
    return [[f"{key}={path}"], [f"--{key}={path}"], [f"--{key}", path]][turn % 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_results_folder(name: str, run_command: RunCommand) -> None:
    """The folder must exist: otherwise `~` is read as the home folder."""
    Path(name).mkdir()
    shown = (os.path.abspath(name) if name.startswith("~") else name).replace("\n", "\\n")
    for turn, script in enumerate(SCRIPTS, NAMES.index(name)):
        code, _, told = run_command(f"{script}.py", "sweep=mine", *typed("results", name, turn))
        assert code == 2
        assert told == f"error: no sweep 'mine' in {shown}/runs: no sweep is planned there\n"


def caught(monkeypatch: pytest.MonkeyPatch, target: str) -> list[Any]:
    """Replace a function by one that stores its arguments and raises an error."""
    kept: list[Any] = []

    def stop(*arguments: Any, **named: Any) -> None:
        kept.append((arguments, named))
        raise InputError("stopped by the test")

    monkeypatch.setattr(target, stop)
    return kept


@pytest.mark.parametrize("name", [*NAMES, NOT_UTF8])
def test_training_and_its_sources(
    name: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = caught(monkeypatch, "lowrank_study.sweeps.sweep.sweep_of")
    Path(name).mkdir()
    (Path(name) / f"{name}.csv").write_text("text,label\na,b\n")
    turn = [*NAMES, NOT_UTF8].index(name)
    given = ["task=file", *typed("task.source", name, turn), f"task.train={name}.csv"]
    results = "new" if name == NOT_UTF8 else f"./new {name}"
    given += [*typed("results", results, turn + 1), "trainer.precision=fp32"]
    code, _, told = run_command("experiments/train.py", *given)
    assert (code, told) == (2, "error: stopped by the test\n")
    config = kept[-1][0][0][0]
    assert os.path.samefile(config.spec.task.source.path, name)
    assert config.spec.task.train == f"{name}.csv"
    assert config.results == Path(results)


def test_a_model_folder_has_to_be_utf8(run_command: RunCommand) -> None:
    Path(NOT_UTF8).mkdir()
    given = ["model=bert", f"model.source={NOT_UTF8}"]
    code, _, told = run_command("experiments/train.py", *given)
    assert code == 2
    assert "is not UTF-8" in told
    assert "rename it" in told


@pytest.mark.parametrize("name", NAMES)
def test_reproducing(name: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = caught(monkeypatch, "lowrank_study.reporting.reproduction.plan_of")
    Path(name).mkdir()
    given = typed("results", name, NAMES.index(name))
    run_command("experiments/reproduce.py", "experiments=[]", *given)
    assert os.path.samefile(kept.pop()[1]["results"], name)


@pytest.fixture
def pair_of() -> Callable[[str], None]:
    """Return a function that writes a checkpoint of that name, and another one in `tuned`."""
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)

    def write(name: str) -> None:
        for folder, change in ((Path(name), 0.0), (Path("tuned") / name, 1e-2)):
            folder.mkdir(parents=True)
            change_of = np.zeros_like(weight)
            change_of[0, 0] = change
            save_file({"layer.query.weight": weight + change_of}, "plain.safetensors")
            os.replace("plain.safetensors", folder / "model.safetensors")

    return write


@pytest.mark.parametrize("name", [*NAMES, NOT_UTF8])
def test_measured_checkpoints(
    name: str,
    run_command: RunCommand,
    pair_of: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair_of(name)
    kept = caught(monkeypatch, "lowrank_study.measurement.request.measure_request")
    turn = [*NAMES, NOT_UTF8].index(name)
    given = [*typed("before", name, turn), f"after=tuned/{name}", f"out=./{name}"]
    run_command("analysis/measure_spectra.py", *given)
    request = kept.pop()[0][0]
    assert os.path.samefile(request.sources["before"], name)
    assert os.path.samefile(request.sources["after"], f"tuned/{name}")
    assert request.out == Path(name)
    for key in ("adapter", "base", "other"):
        adapter = [] if key == "adapter" else ["adapter=tuned"]
        run_command("analysis/measure_spectra.py", *adapter, *typed(key, name, turn))
        assert os.path.samefile(kept.pop()[0][0].sources[key], name)


@pytest.mark.parametrize("name", ["lr=1e-4,r=8 [ü] '模' \"q\" ${x} #:\\", NOT_UTF8 + "\n"])
def test_a_report_in_such_a_folder(
    name: str, run_command: RunCommand, pair_of: Callable[[str], None]
) -> None:
    pair_of(name)
    given = [f"before={name}", "--after", f"tuned/{name}", "--out", f"out {name}"]
    code, told, errors = run_command("analysis/measure_spectra.py", *given)
    assert code == 0, errors
    assert "report.html" in told.splitlines()[-1]
    assert list(Path(f"out {name}").glob("*.html"))
