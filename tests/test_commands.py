"""Run the commands as users do. Bad input gives one line and exit code 2, and writes nothing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunCommand

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,  # a language model learns for minutes without AVX512
        check=False,
    )


def train(*overrides: str) -> "subprocess.CompletedProcess[str]":
    return run(str(ROOT / "experiments" / "train.py"), *overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.rank=0"], ["method.rank=0", "at least 1"]),
        (["method.rnk=4"], ["rnk"]),
        (["method=lroa"], ["lroa", "full", "lora", "peft"]),
        (["experiment=none_such"], ["none_such", "rank_sweep"]),
        (["task=file", "task.source=./nowhere.csv"], ["./nowhere.csv"]),
        (["task=file"], ["task.source"]),
        (["-m", "method.rank=4,1000"], ["method.rank=1000", "from 1 to 16"]),
        (["method.target=[queri]"], ["'queri'", "attention_qv", "query"]),
        (["task.label_column=stars"], ["'stars'", "verdict"]),
        (["tuning=null"], ["~tuning"]),
        (["lr=0.1"], ["did you mean method.learning_rate=0.1?"]),
        (["-m", "workers=1,2"], ["workers=1,2", "once for each"]),
        (["-m", "sweep=a,b"], ["sweep='a,b'", "one name"]),
        (["cases=foo"], ["cases='foo'", "list of settings"]),
        (["results="], ["results is empty"]),
        (["method.rank=1,2"], ["several values", "-m"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    overrides: list[str], words: list[str], tiny_overrides: list[str], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    good = [] if "task=file" in overrides else tiny_overrides
    multirun = [flag for flag in overrides if flag == "-m"]
    rest = [override for override in overrides if override != "-m"]
    done = train(*multirun, *good, f"results={results}", *rest)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr
    assert not results.exists()


SLOW = ("torch", "transformers", "scipy", "matplotlib", "pyarrow", "datasets", "peft")


@pytest.mark.parametrize(
    ("script", "argument", "code", "loaded"),
    [
        ("experiments/train.py", "zzz=1", 2, []),
        ("experiments/train.py", "method.rank=0", 2, []),
        ("experiments/train.py", "task.label_column=stars", 2, ["pandas", "pyarrow"]),
        ("experiments/train.py", "--help", 0, []),
        ("analysis/measure_spectra.py", "zzz=1", 2, []),
        ("analysis/show_progress.py", "sweep=absent", 2, []),
        ("analysis/report.py", "zzz=1", 2, []),
        ("analysis/report.py", "sweep=absent", 2, []),
    ],
)
def test_help_and_bad_input_load_no_slow_library(
    script: str, argument: str, code: int, loaded: list[str], tiny_overrides: list[str]
) -> None:
    """Use a fresh process, because this one has already imported torch and other slow modules."""
    arguments = [*tiny_overrides, argument] if argument.startswith("task") else [argument]
    program = (
        f"import runpy, sys; sys.argv = ['it', *{arguments}]\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "else: code = 0\n"
        f"print(code, sorted({{'pandas', *{SLOW}}} & set(sys.modules)))"
    )
    done = run("-c", program)
    assert done.stdout.splitlines()[-1] == f"{code} {loaded}", done.stderr


def test_a_sweep_in_a_file_is_refused_before_anything_is_read(
    run_command: RunCommand, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for where in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, told = run_command("experiments/train.py", f"results={where}")
        assert (code, told) == (2, f"error: {tmp_path / 'file'} is a file: give a folder\n")


@pytest.mark.slow
def test_lost_runs_are_listed_and_end_with_code_1(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use a folder with an awkward name, and a terminal that supports only ASCII."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    place = tmp_path / "lr=1e-4,r=8 [Bücher] 模型 (copy) ${x}"
    results = ["--results", str(place)]
    hot = ["method.learning_rate=1e38", "trainer.max_grad_norm=1e38", "method.rank=2"]
    many = train(
        "-m", *tiny_overrides, *results, *hot, "method.learning_rate=1e38,1e-2", "workers=1"
    )
    assert many.returncode == 1, many.stderr
    assert "2 runs: 1 diverged, 1 done" in many.stdout
    assert many.stderr.count("diverged: reviews-tiny-lora_r2") == 1
    assert many.stderr.endswith("sweep default: 1 of 2 runs failed or diverged\n")
    assert "Traceback" not in many.stderr
    report = run(str(ROOT / "analysis" / "report.py"), *results)
    assert report.returncode == 1, report.stderr
    assert "diverged: reviews-tiny-lora_r2" in report.stderr
    assert (place / "report" / "report.html").is_file()


def test_a_report_trains_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = [str(ROOT / "analysis" / "report.py"), "experiment=smoke", f"results={results}"]
    done = run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: this command trains nothing: give a trained sweep, as in sweep=NAME\n"
    )
    assert not results.exists()


@pytest.mark.slow
def test_train_then_report(tiny_overrides: list[str], tmp_path: Path) -> None:
    results = f"results={tmp_path / 'results'}"
    one = train(*tiny_overrides, results, "method.rank=2", "tracker=jsonl")
    assert one.returncode == 0, one.stderr
    assert "done: test accuracy 0." in one.stdout
    assert list(tmp_path.rglob("curve.jsonl"))
    many = train(
        "-m", *tiny_overrides, results, "sweep=mine", "method=full,lora", "method.rank=1,2",
        "method.learning_rate=1e-2", "question='Which rank?'",
    )  # fmt: skip
    assert many.returncode == 0, many.stderr
    report = run(str(ROOT / "analysis" / "report.py"), results, "sweep=mine")
    assert report.returncode == 0, report.stderr
    path = tmp_path / "results" / "report" / "report.html"
    assert str(path) in report.stdout
    page = path.read_text()
    assert "Which rank?" in page
    assert "3 of 3" in page or "3 runs" in page
    assert "can’t be tested: no rank has two done seeds" in page
    assert "sufficient_rank" in page
    kept = tmp_path / "results" / "records" / "kept"
    (kept / "tables").mkdir(parents=True)
    (kept / "NOTES.md").write_text("by hand")
    (kept / "tables" / "of_an_earlier_report.csv").write_text("old")
    record = run(str(ROOT / "analysis" / "record.py"), results, "sweep=mine", "record=kept")
    assert record.returncode == 0, record.stderr
    assert (kept / "NOTES.md").read_text() == "by hand"
    assert not (kept / "tables" / "of_an_earlier_report.csv").exists()
    assert "Which rank?" in (kept / "README.md").read_text()
    assert (kept / "tables" / "runs.csv").is_file()
    assert (kept / "figures" / "score_against_rank.svg").is_file()
    assert [path.name for path in kept.parent.iterdir()] == ["kept"]
    missing = run(str(ROOT / "analysis" / "report.py"), results, "sweep=theirs")
    assert missing.returncode == 2
    assert "planned sweeps: default, mine" in missing.stderr


@pytest.mark.slow
def test_wandb_works_offline_and_ends_at_once(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = train(*tiny_overrides, f"results={tmp_path / 'results'}", "tracker=wandb")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracker=wandb: http://127.0.0.1:9 can't be reached") == 1
    assert "Traceback" not in done.stderr
    files = list((tmp_path / "results" / "runs").rglob("run-*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0


@pytest.mark.slow
def test_the_python_api_needs_no_hydra_main(
    tiny_overrides: list[str], tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    import dataclasses

    import lowrank_study as ls

    base = ls.compose(*tiny_overrides, "method.rank=2")
    specs = [dataclasses.replace(base, seed=seed) for seed in (0, 1)]
    runs = ls.sweep(specs, name="api", results=tmp_path, question="Does it repeat?")
    assert [run.status for run in runs] == ["done", "done"]
    path, finding = ls.report_sweep("api", results=tmp_path)
    assert path.is_file()
    assert finding


@pytest.mark.slow
def test_truncate_and_control_then_report(tiny_overrides: list[str], tmp_path: Path) -> None:
    results = f"results={tmp_path / 'results'}"
    many = train(
        "-m", *tiny_overrides, results, "sweep=mine", "method=full,lora", "method.rank=1,4",
        "method.learning_rate=5e-3", "seed=0,1",
    )  # fmt: skip
    assert many.returncode == 0, many.stderr
    cut = run(str(ROOT / "experiments" / "truncate.py"), results, "sweep=mine", "workers=1")
    assert cut.returncode == 0, cut.stderr
    assert "2 runs" in cut.stdout
    controls = run(str(ROOT / "analysis" / "measure_controls.py"), results, "sweep=mine")
    assert controls.returncode == 0, controls.stderr
    assert (
        "trained, shuffled_labels, noise, weight_decay, seeds, noise_pair, training"
        in controls.stdout
    )
    report = run(str(ROOT / "analysis" / "report.py"), results, "sweep=mine")
    assert report.returncode == 0, report.stderr
    written = tmp_path / "results" / "report"
    page = (written / "report.html").read_text()
    assert "tuned head, biases and norms alone give" in page
    for name in ("functional_rank", "rank_along_training"):
        assert (written / "figures" / f"{name}.svg").is_file()
        assert (written / "tables" / f"figure_{name}.csv").is_file()
    for name in ("score_by_kept_rank", "control_ranks", "control_overlap"):
        assert (written / "tables" / f"{name}.csv").is_file()
    wrong = run(str(ROOT / "experiments" / "truncate.py"), results, "sweep=theirs")
    assert wrong.returncode == 2
    assert "no sweep 'theirs'" in wrong.stderr
