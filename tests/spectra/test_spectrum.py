"""The spectrum of one update: its singular values, and every number in one row."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra import ranks
from lowrank_study.spectra.measures import MEASURES
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.tables import row
from tests.spectra.conftest import dense, factored, orthonormal


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_every_number_of_a_planted_update(planted, method):
    sigma, delta, W0 = planted
    told = row(measure(dense(delta, W0=W0), method=method))
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


def test_certified_determines_energy_ranks_and_leaves_other_measures_open(planted):
    _, delta, W0 = planted
    big = np.kron(np.eye(2), delta)
    spectrum = measure(dense(big, W0=np.kron(np.ones((2, 2)), W0)), method="certified")
    told = row(spectrum)
    assert (spectrum.method, spectrum.complete) == ("certified", False)
    assert [told[f"energy_rank_{p}"] for p in (90, 95, 99)] == [4, 5, 7]
    assert told["stable_rank"] == pytest.approx(170 / 64, rel=1e-9)
    assert told["resolvable"] is True
    for name in (
        "numerical_rank", "rank_above_mp_edge", "gavish_donoho_rank", "effective_rank",
        "participation_ratio", "mp_edge",
    ):  # fmt: skip
        assert told[name] is None
    assert replace(spectrum, residual_norm=10.0).energy_rank(0.9) is None


def test_factors_give_the_results_of_their_product():
    rng = np.random.default_rng(1)
    W0 = rng.standard_normal((90, 70))
    B, A = rng.standard_normal((90, 5)), rng.standard_normal((5, 70))
    by_factors = row(measure(factored(B, A, 0.25, W0=W0), method="gram"))
    by_product = row(measure(dense(0.25 * B @ A, W0=W0, dtype="float64"), method="svd"))
    names = {measure.name for measure in MEASURES if measure.value is not None}
    for name in names - {"mp_edge", "rounding_floor", "sigma1_over_sigma10"}:
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
    assert spectrum.resolvable_at(0.90)
    assert not spectrum.resolvable_at(0.9999)


@pytest.mark.parametrize("method", ["gram", "svd", "certified"])
def test_identical_checkpoints_have_rank_zero_and_undefined_ratios(method):
    W0 = np.random.default_rng(4).standard_normal((6, 5))
    told = row(measure(dense(np.zeros((6, 5)), W0=W0), method=method))
    assert told["frobenius_norm"] == 0.0
    assert told["relative_norm"] == 0.0
    assert [told[f"energy_rank_{percent}"] for percent in (90, 95, 99)] == [0, 0, 0]
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


def test_unmeasurable_inputs_are_refused():
    with pytest.raises(InputError, match="NaN or Inf"):
        measure(dense(np.array([[1.0, math.nan]])), method="gram")
    with pytest.raises(InputError, match="choose 'gram', 'svd' or 'certified'"):
        measure(dense(np.ones((2, 2))), method="lapack")  # type: ignore[arg-type]
