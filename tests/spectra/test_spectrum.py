"""The record of one spectrum: measured, told in one row, and kept bit for bit in a file."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra import ranks
from lowrank_study.spectra.spectra_file import load_spectra, save_spectra
from lowrank_study.spectra.spectrum import (
    SPECTRA_COLUMNS,
    Spectrum,
    energy_rank_of,
    measure,
    resolvable_at,
    row,
    singular_values_table,
    spectra_table,
)
from lowrank_study.spectra.updates import DenseUpdate, FactoredUpdate

TABLE = [
    "run_id", "module", "layer", "role", "out_features", "in_features", "storage_dtype",
    "frobenius_norm", "base_frobenius_norm", "relative_norm", "numerical_rank", "stable_rank",
    "energy_rank_90", "energy_rank_95", "energy_rank_99", "effective_rank",
    "participation_ratio", "sigma1_over_sigma10", "mp_edge", "rank_above_mp_edge",
    "gavish_donoho_rank", "rounding_floor", "resolvable",
]  # fmt: skip


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def dense(delta, *, W0=None, dtype="float32", layer=0):
    return DenseUpdate(
        name=f"encoder.layer.{layer}.attention.query",
        layer=layer,
        role="query",
        storage_dtype=dtype,
        delta_OI=delta,
        W0_OI=W0,
    )


def factored(B, A, scaling, *, W0=None, dtype="float32"):
    return FactoredUpdate(
        name="encoder.layer.1.attention.value",
        layer=1,
        role="value",
        storage_dtype=dtype,
        B_OR=B,
        A_RI=A,
        scaling=scaling,
        W0_OI=W0,
    )


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


@pytest.fixture
def planted():
    """Rank 4 of known values on a float32 base, with noise far below it."""
    rng = np.random.default_rng(0)
    sigma = np.array([8.0, 4.0, 2.0, 1.0])
    delta = orthonormal(rng, 120, 4) * sigma @ orthonormal(rng, 80, 4).T
    W0 = rng.standard_normal((120, 80)).astype(np.float32)
    return sigma, delta, W0


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_every_number_of_a_planted_update(planted, method):
    sigma, delta, W0 = planted
    told = row(measure(dense(delta, W0=W0), method=method))
    assert list(told) == TABLE[1:]
    assert (told["module"], told["layer"]) == ("encoder.layer.0.attention.query", 0)
    assert (told["role"], told["storage_dtype"]) == ("query", "float32")
    assert (told["out_features"], told["in_features"]) == (120, 80)
    assert told["frobenius_norm"] == pytest.approx(math.sqrt(85), rel=1e-12)
    base = math.sqrt(math.fsum(float(x) ** 2 for x in W0.ravel()))
    assert told["base_frobenius_norm"] == pytest.approx(base, rel=1e-12)
    assert told["relative_norm"] == pytest.approx(math.sqrt(85) / base, rel=1e-12)
    assert told["numerical_rank"] == told["gavish_donoho_rank"] == 4
    assert told["rank_above_mp_edge"] == 4
    assert told["stable_rank"] == pytest.approx(85 / 64, rel=1e-9)
    assert told["energy_rank_90"] == 2
    assert told["energy_rank_95"] == 3
    assert told["energy_rank_99"] == 4
    assert told["effective_rank"] == pytest.approx(ranks.effective_rank(sigma), rel=1e-6)
    assert told["participation_ratio"] == pytest.approx(85**2 / (4096 + 256 + 16 + 1), rel=1e-9)
    assert told["resolvable"] is True
    assert 0 < told["rounding_floor"] < 1e-4


def test_certified_settles_energy_ranks_and_leaves_the_rest_open(planted):
    _, delta, W0 = planted
    big = np.kron(np.eye(2), delta)
    spectrum = measure(dense(big, W0=np.kron(np.ones((2, 2)), W0)), method="certified")
    told = row(spectrum)
    assert (spectrum.method, spectrum.complete) == ("certified", False)
    assert [told[f"energy_rank_{p}"] for p in (90, 95, 99)] == [4, 5, 7]
    assert told["stable_rank"] == pytest.approx(170 / 64, rel=1e-9)
    assert told["resolvable"] is True
    for name in ("numerical_rank", "rank_above_mp_edge", "gavish_donoho_rank"):
        assert told[name] is None
    for name in ("effective_rank", "participation_ratio", "mp_edge"):
        assert math.isnan(told[name])
    assert energy_rank_of(replace(spectrum, residual_norm=10.0), 0.9) is None


def test_factors_say_what_their_product_says():
    rng = np.random.default_rng(1)
    W0 = rng.standard_normal((90, 70))
    B, A = rng.standard_normal((90, 5)), rng.standard_normal((5, 70))
    by_factors = row(measure(factored(B, A, 0.25, W0=W0), method="gram"))
    by_product = row(measure(dense(0.25 * B @ A, W0=W0, dtype="float64"), method="svd"))
    for name in TABLE[6:]:
        if name in ("storage_dtype", "mp_edge", "rounding_floor", "sigma1_over_sigma10"):
            continue
        assert by_factors[name] == pytest.approx(by_product[name], rel=1e-9), name
    assert by_factors["gavish_donoho_rank"] == by_factors["rank_above_mp_edge"] == 5
    assert by_factors["mp_edge"] == 0.0
    assert math.isnan(by_factors["sigma1_over_sigma10"])


def test_coarse_factors_keep_their_small_directions():
    rng = np.random.default_rng(2)
    B = orthonormal(rng, 60, 3) * [1.0, 1e-3, 1e-5]
    A = orthonormal(rng, 50, 3).T
    for dtype in ("bfloat16", "float32"):
        assert row(measure(factored(B, A, 1.0, dtype=dtype), method="gram"))["numerical_rank"] == 3


def test_rank_of_a_difference_in_16_bits_counts_only_what_is_above_its_rounding():
    rng = np.random.default_rng(3)

    def kept(matrix):
        """Round to the 8 significant bits of bfloat16."""
        mantissa, exponent = np.frexp(matrix)
        return np.ldexp(np.rint(mantissa * 256) / 256, exponent)

    W0 = rng.standard_normal((200, 200))
    update = 0.3 * orthonormal(rng, 200, 4) @ orthonormal(rng, 200, 4).T
    strong, weak = (kept(W0 + factor * update) - kept(W0) for factor in (20.0, 1.0))
    told = row(measure(dense(strong, W0=kept(W0), dtype="bfloat16"), method="gram"))
    assert (told["numerical_rank"], told["energy_rank_90"], told["resolvable"]) == (4, 4, True)
    told = row(measure(dense(weak, W0=kept(W0), dtype="bfloat16"), method="gram"))
    assert told["energy_rank_90"] > 50
    assert told["resolvable"] is False
    spectrum = measure(dense(strong, W0=kept(W0), dtype="bfloat16"), method="gram")
    assert resolvable_at(spectrum, 0.90)
    assert not resolvable_at(spectrum, 0.9999)


@pytest.mark.parametrize("method", ["gram", "svd", "certified"])
def test_identical_checkpoints_have_rank_zero_and_undefined_ratios(method):
    W0 = np.random.default_rng(4).standard_normal((6, 5))
    told = row(measure(dense(np.zeros((6, 5)), W0=W0), method=method))
    assert told["frobenius_norm"] == 0.0
    assert told["relative_norm"] == 0.0
    for name in TABLE:
        if name.startswith("energy_rank"):
            assert told[name] == 0
    for name in ("stable_rank", "sigma1_over_sigma10"):
        assert math.isnan(told[name])
    assert told["resolvable"] is False
    complete = row(measure(dense(np.zeros((6, 5)), W0=W0), method="gram"))
    assert complete["numerical_rank"] == complete["gavish_donoho_rank"] == 0
    assert math.isnan(complete["effective_rank"])


def test_an_untrained_adapter_is_a_zero_update_and_nothing_hides_under_a_floor():
    told = row(measure(factored(np.zeros((6, 2)), np.ones((2, 5)), 2.0), method="gram"))
    assert (told["numerical_rank"], told["energy_rank_90"]) == (0, 0)
    assert told["resolvable"] is True
    assert math.isnan(told["base_frobenius_norm"])
    assert math.isnan(told["relative_norm"])


def test_a_quantised_base_makes_no_rank_resolvable(planted):
    _, delta, W0 = planted
    told = row(measure(dense(delta, W0=W0, dtype="Q4_1"), method="gram"))
    assert math.isnan(told["rounding_floor"])
    assert told["resolvable"] is False
    assert told["numerical_rank"] == 4


def test_noise_of_untouched_rows_is_judged_by_the_rows_that_moved():
    rng = np.random.default_rng(5)
    delta = np.zeros((400, 100))
    delta[:150] = rng.standard_normal((150, 100))
    told = row(measure(dense(delta), method="gram"))
    assert told["mp_edge"] == pytest.approx(math.sqrt(150) + math.sqrt(100), rel=0.03)
    assert told["gavish_donoho_rank"] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_the_smallest_matrices(shape):
    told = row(measure(dense(np.full(shape, -2.0)), method="gram"))
    assert told["frobenius_norm"] == pytest.approx(2 * math.sqrt(max(shape)), rel=1e-14)
    assert told["numerical_rank"] == told["energy_rank_99"] == 1
    assert told["effective_rank"] == told["stable_rank"] == 1.0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="NaN or Inf"):
        measure(dense(np.array([[1.0, math.nan]])), method="gram")
    with pytest.raises(InputError, match="choose 'gram', 'svd' or 'certified'"):
        measure(dense(np.ones((2, 2))), method="lapack")  # type: ignore[arg-type]


@pytest.fixture
def several(planted):
    _, delta, W0 = planted
    rng = np.random.default_rng(6)
    outside = DenseUpdate(
        name="classifier",
        layer=None,
        role="classifier",
        storage_dtype="bfloat16",
        delta_OI=rng.standard_normal((3, 4)) * 1e-30,
        W0_OI=None,
    )
    return [
        measure(dense(delta, W0=W0), method="gram"),
        measure(factored(rng.standard_normal((9, 2)), np.ones((2, 8)), 0.1), method="gram"),
        measure(outside, method="svd"),
        measure(dense(np.zeros((4, 4)), layer=11), method="gram"),
        measure(dense(np.kron(np.eye(2), delta)), method="certified"),
    ]


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
    with pytest.raises(InputError, match="no file of spectra"):
        load_spectra(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="no folder"):
        save_spectra(tmp_path / "absent" / "spectra.parquet", several)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(InputError, match="holds format None"):
        load_spectra(other)
    path = tmp_path / "cut.parquet"
    save_spectra(path, several)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="isn't a whole Parquet file"):
        load_spectra(path)


def test_spectra_table(several):
    table = spectra_table("run-1", several)
    assert list(table.columns) == TABLE == list(SPECTRA_COLUMNS)
    assert len(table) == 5
    assert (table["run_id"] == "run-1").all()
    assert str(table["layer"].dtype) == str(table["energy_rank_90"].dtype) == "Int64"
    assert table["layer"].tolist() == [0, 1, pd.NA, 11, 0]
    assert table["resolvable"].dtype == bool
    assert table["relative_norm"].dtype == np.float64
    assert table["gavish_donoho_rank"].isna().tolist() == [False] * 4 + [True]
    empty = spectra_table("run-1", [])
    assert list(empty.columns) == TABLE
    assert (empty.dtypes == table.dtypes).all()
    both = pd.concat([empty, table], ignore_index=True)
    assert (both.dtypes == table.dtypes).all()


def test_singular_values_table(several):
    table = singular_values_table("run-1", several)
    assert list(table.columns) == [
        "run_id", "module", "layer", "role", "index", "singular_value",
    ]  # fmt: skip
    assert len(table) == sum(s.singular_values.size for s in several)
    first = table[: several[0].singular_values.size]
    np.testing.assert_array_equal(first["singular_value"], several[0].singular_values)
    assert first["index"].tolist() == list(range(1, len(first) + 1))
    empty = singular_values_table("run-1", several[3:4])
    assert len(empty) == 0
    assert (empty.dtypes == table.dtypes).all()
