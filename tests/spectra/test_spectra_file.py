"""Spectra are kept bit for bit in a file."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra.spectra_file import load_spectra, save_spectra
from lowrank_study.spectra.spectrum import Spectrum


def same(first, second):
    """Whether two spectra agree in every bit."""
    for field in fields(Spectrum):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.tobytes() != b.tobytes():
                return False
        elif isinstance(a, float) and math.isnan(a):
            if not math.isnan(b):
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


def test_a_file_gives_back_every_bit(several, tmp_path):
    path = tmp_path / "spectra.parquet"
    save_spectra(path, several)
    again = load_spectra(path)
    assert len(again) == len(several)
    for first, second in zip(several, again, strict=True):
        assert same(first, second)
        assert not same(first, replace(second, frobenius_norm=second.frobenius_norm + 1.0))
    assert [p.name for p in tmp_path.iterdir()] == ["spectra.parquet"]
    versions = json.loads(pq.read_schema(path).metadata[b"lowrank_study"])["versions"]
    assert versions["numpy"] == np.__version__


def test_an_empty_list_is_kept_as_one(tmp_path):
    save_spectra(tmp_path / "none.parquet", [])
    assert load_spectra(tmp_path / "none.parquet") == []


def test_a_failed_write_leaves_the_old_file_and_no_other(several, tmp_path, monkeypatch):
    path = tmp_path / "spectra.parquet"
    save_spectra(path, several[:1])
    before = path.read_bytes()

    def broken(table, file, **options):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(OSError, match="no space"):
        save_spectra(path, several)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["spectra.parquet"]


def test_files_that_are_not_spectra_are_refused(several, tmp_path):
    with pytest.raises(InputError, match=r"absent\.parquet does not exist"):
        load_spectra(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="absent does not exist"):
        save_spectra(tmp_path / "absent" / "spectra.parquet", several)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(InputError, match="holds format None"):
        load_spectra(other)
    path = tmp_path / "cut.parquet"
    save_spectra(path, several)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is not a whole Parquet file"):
        load_spectra(path)
