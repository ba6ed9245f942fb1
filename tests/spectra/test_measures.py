"""The table of measures, and which of their values are resolved."""

import numpy as np
import pytest
import torch

from lowrank_study.spectra.measures import MEASURES, FitRange, readings
from lowrank_study.spectra.spectrum import measure
from tests.spectra.conftest import dense

FITS = FitRange(first=1, last=100)


def test_names_and_labels_are_unique() -> None:
    assert len({m.name for m in MEASURES}) == len({m.label for m in MEASURES}) == len(MEASURES)


def test_every_measure_without_another_matrix_is_read(several) -> None:
    expected = {m.name for m in MEASURES if m.group not in ("base", "other")}
    for spectrum in several:
        assert set(readings(spectrum, FITS)) == expected


@pytest.mark.parametrize("name", [m.name for m in MEASURES if m.on_noise])
def test_noise_gives_the_values_in_the_table(name: str) -> None:
    n = 300
    noise = np.random.default_rng(0).standard_normal((n, n))
    found = readings(measure(dense(noise, dtype="float64"), method="gram"), FITS)[name].value
    [said] = [m.on_noise for m in MEASURES if m.name == name]
    expected = {"n": n, "n / 4": n / 4, "0": 0}.get(said)
    if expected is None:
        expected = float(said.removesuffix(" n")) * n
    assert found == pytest.approx(expected, rel=0.06, abs=0.01 * n)


def test_measures_left_open_by_an_incomplete_spectrum_are_not_computed() -> None:
    rng = np.random.default_rng(0)
    delta = rng.standard_normal((256, 2)) @ rng.standard_normal((2, 256))
    spectrum = measure(dense(delta, dtype="float64"), method="certified")
    assert not spectrum.complete
    found = readings(spectrum, FITS)
    assert found["energy_rank_90"].value == 2
    assert found["effective_rank"].status == "not computed"
    assert found["numerical_rank"].status == "not computed"
    assert found["mp_edge"].status == "not computed"


@pytest.mark.parametrize(("relative", "status"), [(0.003, "not resolvable"), (0.02, "resolved")])
def test_a_true_rank_4_in_bfloat16(relative: float, status: str) -> None:
    """From σ alone, the smaller of the two seems to have a rank in the hundreds."""
    torch.manual_seed(0)
    size = 512
    w0 = torch.randn(size, size) / size**0.5
    delta = torch.randn(size, 4) @ torch.randn(4, size)
    delta *= relative * w0.norm() / delta.norm()
    before, after = (w.bfloat16().double().numpy() for w in (w0, w0 + delta))
    found = readings(
        measure(dense(after - before, W0=before, dtype="bfloat16"), method="gram"), FITS
    )
    reading = found["energy_rank_90"]
    assert reading.status == status
    assert reading.as_read is not None
    if status == "resolved":
        assert reading.value == 4
    else:
        assert reading.as_read > 100
    assert found["gavish_donoho_rank"].as_read == 4
