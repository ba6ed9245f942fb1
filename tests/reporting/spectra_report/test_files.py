"""The files of a measured report."""

import base64
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.errors import InputError
from lowrank_study.measurement.records import Measurement
from lowrank_study.reporting.spectra_report import write
from tests.reporting.spectra_report.conftest import FILES, FORMULA


def test_all_files_are_there_and_agree(reported: tuple[Path, Measurement]) -> None:
    path, found = reported
    assert {file.name for file in path.parent.iterdir()} == FILES
    csv = pd.read_csv(path.parent / "spectra.csv")
    parquet = pd.read_parquet(path.parent / "spectra.parquet")
    record = json.loads((path.parent / "spectra.json").read_text())
    assert len(csv) == len(parquet) == len(record["matrices"]) == 32
    assert list(parquet["update"].unique()) == ["first", "other"]
    for row, matrix in zip(parquet.itertuples(), found.matrices, strict=False):
        assert row.module == matrix.spectrum.module
        ours = matrix.readings["effective_rank"]
        assert row.effective_rank_as_read == ours.as_read
        assert row.effective_rank_status == ours.status
    sigma = pd.read_parquet(path.parent / "singular_values.parquet")
    first = sigma[
        (sigma["update"] == "first") & (sigma["module"] == found.matrices[3].spectrum.module)
    ]
    assert np.array_equal(first["singular_value"], found.matrices[3].spectrum.singular_values)
    files = pd.read_csv(path.parent / "files.csv")
    assert list(files["sha256"]) == [file["sha256"] for file in record["files"]]
    assert record["files"][0]["part"] == "other: before"
    assert record["matrices"][3]["similarity"]["right_dimension"] == 16
    assert len(record["matrices"][3]["intruder_cosines"]) == 10


def test_what_is_not_resolvable_is_never_a_number_alone(
    reported: tuple[Path, Measurement],
) -> None:
    path, found = reported
    hidden = {
        matrix.spectrum.module
        for matrix in found.matrices
        if matrix.readings["energy_rank_90"].status == "not resolvable"
    }
    assert hidden == {m.spectrum.module for m in found.matrices if m.spectrum.layer == 1}
    csv = pd.read_csv(path.parent / "spectra.csv")
    parquet = pd.read_parquet(path.parent / "spectra.parquet")
    lost = parquet["module"].isin(hidden) & (parquet["update"] == "first")
    for name in ("energy_rank_90", "energy_rank_95", "energy_rank_99", "effective_rank",
                 "stable_rank", "participation_ratio", "numerical_rank"):  # fmt: skip
        assert set(csv.loc[lost, name]) == {"not resolvable"}
        assert parquet.loc[lost, name].isna().all()
        assert set(parquet.loc[lost, f"{name}_status"]) == {"not resolvable"}
    assert (parquet.loc[lost, "energy_rank_90_as_read"] > 3).all()
    assert (csv.loc[~lost, "energy_rank_90"].astype(float) <= 3).all()
    tex = (path.parent / "spectra.tex").read_text()
    assert tex.count("not resolvable &") >= 4 * len(hidden)
    page = path.read_text()
    assert page.count('class="unresolved"') >= 7 * len(hidden)
    assert "In 6 of 16 changed matrices the rank is not resolvable" in page


def test_the_page_needs_nothing_and_allows_only_its_own_scripts(
    reported: tuple[Path, Measurement],
) -> None:
    page = reported[0].read_bytes().decode()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 3
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    outside = page
    for script in scripts:
        outside = outside.replace(script, "")
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(?!data:)\S*//""", outside)
    assert str(reported[1].files[0].sha256) in outside


def test_names_are_escaped_in_every_file(hostile: Path) -> None:
    for name in FILES - {"singular_values.parquet", "spectra.parquet"}:
        text = (hostile.parent / name).read_bytes().decode()
        assert "\u202e" not in text
        assert "\x00" not in text
    page = hostile.read_text()
    assert "<img" not in page.rpartition("</script>")[0].partition("<script>")[0]
    assert "<b>bold" not in page
    assert r"\u202e\x00\nname" in page
    csv = (hostile.parent / "spectra.csv").read_text()
    assert f"first,'{FORMULA}," in csv
    assert "\n'@vector," in (hostile.parent / "vectors.csv").read_text()
    skipped = (hostile.parent / "skipped.csv").read_text()
    assert "'-left\\nout,18 NaN and 0 infinite values" in skipped
    modules = pd.read_parquet(hostile.parent / "spectra.parquet")["module"]
    assert all(module.isprintable() for module in modules)
    assert r"\textless{}img" in (hostile.parent / "spectra.tex").read_text()


def test_the_same_measurement_gives_the_same_bytes(
    reported: tuple[Path, Measurement], tmp_path: Path
) -> None:
    path, found = reported
    write.report_measurement(found, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (path.parent / name).read_bytes(), name


@pytest.mark.parametrize("present", [False, True])
def test_a_failure_leaves_no_part_of_a_report(
    reported: tuple[Path, Measurement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    present: bool,
) -> None:
    folder, found = tmp_path / "out", reported[1]
    if present:
        write.report_measurement(found, folder)
        (folder / "mine.txt").write_text("kept")
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write.report_measurement(found, folder)
    after = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before
    assert folder.exists() == present
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if present else [])


def test_a_folder_that_cannot_be_one_is_refused(
    reported: tuple[Path, Measurement], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file"):
            write.report_measurement(reported[1], folder)
