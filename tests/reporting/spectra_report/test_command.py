"""The command that measures updates, and its Python function."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.measurement.records import Step
from lowrank_study.reporting.spectra_report import report_spectra
from lowrank_study.reporting.spectra_report.progress import line_of
from tests.reporting.spectra_report.conftest import FILES

ROOT = Path(__file__).parents[3]


def command(*overrides: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "analysis" / "measure_spectra.py"), *overrides],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_measures_and_says_what_it_found(
    models: dict[str, Path], tmp_path: Path
) -> None:
    done = command(
        f"before={models['base']}",
        f"after={models['second']}",
        f"out={tmp_path / 'out'}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len([line for line in lines if re.match(r"\[ ?\d+/16\] ", line)]) == 17
    assert "left)" in lines[3]
    assert lines[-1].startswith(f"{tmp_path / 'out' / 'report.html'}: 90 % of the energy of ΔW")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def measured_by_the_command(**settings: Any) -> None:
    """Run the command's function with the command's error handling."""
    spec = importlib.util.spec_from_file_location("main", ROOT / "analysis" / "measure_spectra.py")
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    given = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    main.measure(OmegaConf.create(composed("measure_spectra") | given))


def test_what_is_left_out_comes_first_everywhere(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(models["base"] / "model.safetensors") | {"head.weight": torch.ones(2, 16)}
    save_file(tensors, tmp_path / "tuned.safetensors")
    given = {"before": models["base"], "after": tmp_path / "tuned.safetensors"}
    out = tmp_path / "out"
    told = "eft out: 32 of 6,080 parameters of after (0.53 %): only in the tuned checkpoint: head"
    with pytest.raises(Unfinished, match=f"l{re.escape(told)}"):
        measured_by_the_command(**given, out=out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"l{told}"
    assert lines[-1].endswith("Only 16 of 17 matrices were compared, and none of these changed.")
    first = re.search(r"</h1>.*?<p[^>]*>(.*?)</p>", (out / "report.html").read_text(), re.DOTALL)
    assert first is not None
    assert first[1] == f"<strong>L{told}.</strong>"
    assert (out / "spectra.tex").read_text().startswith(r"\noindent Left out: 32 of 6,080")
    record = json.loads((out / "spectra.json").read_text())
    (part,) = record["left_out"]
    assert part["share"] == pytest.approx(32 / 6080)
    assert not any("No matrix changed" in finding["text"] for finding in record["findings"])
    measured_by_the_command(**given, out=out, allow_partial=True)  # the exit code is 0
    assert capsys.readouterr().out.splitlines()[0] == f"l{told}"


def test_no_matrix_changed_does_not_hide_that_a_vector_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, bias in (("before", 0.0), ("after", 1.0)):
        state = {"q.weight": torch.ones(4, 4), "q.bias": torch.full((4,), bias)}
        save_file(state, tmp_path / f"{name}.safetensors")
    before, after = (tmp_path / f"{name}.safetensors" for name in ("before", "after"))
    measured_by_the_command(before=before, after=after, out=tmp_path / "out")
    assert (
        capsys.readouterr()
        .out.rstrip()
        .endswith("every rank is 0 and every ratio is undefined. 1 vector changed.")
    )


@pytest.mark.slow
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    models: dict[str, Path], tmp_path: Path
) -> None:
    save_file({"tower.weight": torch.ones(3, 4)}, tmp_path / "tower.safetensors")
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x02}q\x00.")
    before = sorted(tmp_path.iterdir())
    for overrides, words in (
        ([f"before={tmp_path / 'tower.safetensors'}", f"after={models['base']}"], ["tower.weight"]),
        ([f"before={tmp_path / 'pickle.bin'}", f"after={models['base']}"], ["safetensors"]),
        (["before=./none", "after=./none"], ["./none", "existing path"]),
        (["adaptor=x"], ["adaptor"]),
    ):
        done = command(*overrides, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ")
        for word in words:
            assert word in done.stderr
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("done", "share", "seconds", "expected"),
    [
        (3, 0.25, 10.0, "[ 3/12] q: fine (0:30 left)"),
        (12, 1.0, 10.0, "[12/12] q: fine"),
        (1, 0.001, 30.0, "[ 1/12] q: fine (8:19:30 left)"),
    ],
)
def test_a_line_of_progress(done: int, share: float, seconds: float, expected: str) -> None:
    step = Step(done=done, total=12, share=share, name="q", outcome="fine")
    assert line_of(step, seconds) == expected


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InputError, match=r"'rank'.*before, after, adapter"):
        report_spectra(rank=3)
