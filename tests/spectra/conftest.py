"""Updates of known spectra, dense and factored."""

import numpy as np
import pytest
import torch

from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.updates import DenseUpdate, FactoredUpdate


def singular_values(matrix):
    return np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T), 0.0))[::-1]


def stored(matrix, dtype):
    """Return a matrix after storage in a dtype, as float64."""
    return torch.from_numpy(matrix).to(getattr(torch, dtype)).to(torch.float64).numpy()


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


@pytest.fixture
def planted():
    """Rank 4 of known values on a float32 base, with noise far below it."""
    rng = np.random.default_rng(0)
    sigma = np.array([8.0, 4.0, 2.0, 1.0])
    delta = orthonormal(rng, 120, 4) * sigma @ orthonormal(rng, 80, 4).T
    W0 = rng.standard_normal((120, 80)).astype(np.float32)
    return sigma, delta, W0


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
