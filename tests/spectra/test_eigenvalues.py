"""Both implementations give the eigenvalues of NumPy and of planted matrices."""

import numpy as np
import pytest
import torch

from lowrank_study import native
from lowrank_study.spectra import eigenvalues
from lowrank_study.spectra.eigenvalues import GramMatrix
from lowrank_study.spectra.svd import svd_of_matrix

SIDES = (1, 2, 3, 47, 48, 49, 96, 97, 200, 331)


@pytest.fixture
def _native(monkeypatch):
    """Use the native code at every size, or skip where there is no compiler."""
    if native.library("tridiagonal.c") is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(eigenvalues, "NATIVE_FROM", 1)


@pytest.fixture
def threads():
    """Give a function that sets the number of threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def eigenvalues_of(*blocks):
    gram = GramMatrix(blocks[0].shape[1])
    for block in blocks:
        gram.add(block)
    return gram.eigenvalues()


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def planted(rng, sigma, rows=None):
    count = len(sigma)
    return orthonormal(rng, rows or count, count) * sigma @ orthonormal(rng, count, count).T


def matrices(rng, n):
    """Matrices of n columns that reductions are known to trip over."""
    index = np.arange(n)
    yield "random", rng.standard_normal((n + 5, n))
    yield "few rows", rng.standard_normal((max(1, n // 9), n))
    yield "low rank", planted(rng, np.where(index < 3, 1.0, 0.0), n + 2)
    yield "graded", planted(rng, 10.0 ** -np.linspace(0, 16, n))
    yield "rows graded", 10.0 ** -np.linspace(0, 30, n)[:, None] * rng.standard_normal((n, n))
    yield "clustered", planted(rng, np.where(index < n // 2, 1.0, 1e-3))
    yield "all equal", orthonormal(rng, n, n)
    yield "diagonal", np.diag(rng.uniform(0.1, 1.0, n))
    yield "banded", np.triu(np.tril(rng.standard_normal((n, n)), 4))
    yield "tridiagonal", np.triu(np.tril(rng.standard_normal((n, n)), 1))
    yield "blocks", np.kron(np.eye(n // 3 + 1), rng.standard_normal((3, 3)))[:n, :n]
    yield "one entry", np.eye(n) * (index == n // 2)
    yield "zero", np.zeros((4, n))
    yield "ones", np.ones((7, n))
    yield "tiny beside large", np.diag(np.where(index == 0, 1.0, 1e-90)) + 1e-95


@pytest.mark.usefixtures("_native")
@pytest.mark.parametrize("n", SIDES)
def test_native_eigenvalues_are_those_of_numpy(n):
    for name, X in matrices(np.random.default_rng(n), n):
        expected = np.linalg.eigvalsh(X.T @ X)
        found = eigenvalues_of(X)
        assert found.shape == (n,)
        assert (np.diff(found) >= 0).all(), name
        # Twice the error that each of the two may have.
        error = np.abs(found - expected).max()
        assert error <= 1e-15 * max(8.0, 2 * np.sqrt(n)) * expected[-1], name
        assert found.sum() == pytest.approx(float(np.sum(X**2)), rel=1e-13, abs=0), name


@pytest.mark.usefixtures("_native")
@pytest.mark.parametrize("exponent", [-150, -50, 50, 150])
def test_native_eigenvalues_scale_exactly(exponent):
    X = np.random.default_rng(1).standard_normal((130, 110))
    expected = np.ldexp(eigenvalues_of(X), 2 * exponent)
    np.testing.assert_array_equal(eigenvalues_of(np.ldexp(X, exponent)), expected)


@pytest.mark.usefixtures("_native")
def test_native_eigenvalues_do_not_depend_on_the_threads(threads):
    X = np.random.default_rng(2).standard_normal((700, 500))
    found = []
    for count in (1, 2, 3, 7):
        threads(count)
        found.append(eigenvalues_of(X))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.usefixtures("_native")
def test_many_threads_leave_no_step_out(threads):
    """More threads than processors, many times: a missing wait between sweeps would show."""
    X = np.random.default_rng(3).standard_normal((260, 230))
    threads(1)
    expected = eigenvalues_of(X)
    threads(6)
    for _ in range(30):
        np.testing.assert_array_equal(eigenvalues_of(X), expected)


@pytest.mark.parametrize("native_from", [1, 10**9])
def test_blocks_and_memory_order_change_nothing_but_rounding(monkeypatch, native_from):
    monkeypatch.setattr(eigenvalues, "NATIVE_FROM", native_from)
    X = np.random.default_rng(4).standard_normal((450, 120))
    expected = np.linalg.eigvalsh(X.T @ X)
    wide = np.zeros((450, 240))
    wide[:, ::2] = X
    for blocks in (
        [X],
        [np.asfortranarray(X)],
        [wide[:, ::2]],
        [X[::-1]],
        [X[:, ::-1]],
        [X[:1], X[1:200], X[200:]],
    ):
        np.testing.assert_allclose(eigenvalues_of(*blocks), expected, rtol=1e-13)
    np.testing.assert_array_equal(GramMatrix(120).eigenvalues(), np.zeros(120))


@pytest.mark.parametrize("native_from", [1, 10**9])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_nonfinite_rows_never_give_eigenvalues(monkeypatch, native_from, bad):
    monkeypatch.setattr(eigenvalues, "NATIVE_FROM", native_from)
    X = np.random.default_rng(5).standard_normal((90, 60))
    X[3, 4] = bad
    with np.errstate(all="ignore"), pytest.raises((AssertionError, ValueError)):
        eigenvalues_of(X)


@pytest.mark.parametrize("native_from", [1, 10**9])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("shape", [(160, 101), (101, 160)])
def test_singular_values_are_within_their_bound(monkeypatch, native_from, scale, shape):
    monkeypatch.setattr(eigenvalues, "NATIVE_FROM", native_from)
    for name, X in matrices(np.random.default_rng(6), 101):
        if not X.any():
            continue
        matrix = (X.T if shape[0] < shape[1] else X) * (scale / np.abs(X).max())
        found = svd_of_matrix(matrix, method="gram")
        expected = np.linalg.svd(matrix / scale, compute_uv=False)[: len(found.singular_values)]
        assert np.abs(found.singular_values / scale - expected).max() <= 1e-7 * expected[0], name


@pytest.mark.usefixtures("_native")
def test_without_native_code_the_numbers_are_the_same(monkeypatch):
    X = np.random.default_rng(7).standard_normal((300, 220)).astype(np.float32)
    with_it = svd_of_matrix(X, method="gram").singular_values
    monkeypatch.setattr(native, "wanted", False)
    without = svd_of_matrix(X, method="gram").singular_values
    np.testing.assert_allclose(with_it, without, rtol=1e-12)
    assert (with_it != without).any()  # else one of the two was not what it says


@pytest.mark.parametrize("n", SIDES)
def test_eigenvalues_of_a_gpu_are_those_of_numpy(n):
    for name, X in matrices(np.random.default_rng(n), n):
        on_gpu = eigenvalues._OnGpu(n, torch.device("cpu"))
        for block in (X[:1], X[1:]):
            on_gpu.add(block)
        expected = np.linalg.eigvalsh(X.T @ X)
        error = np.abs(on_gpu.eigenvalues() - expected).max()
        assert error <= 1e-15 * max(8.0, 2 * np.sqrt(n)) * expected[-1], name


@pytest.mark.parametrize("is_there", [False, True])
def test_a_gpu_is_used_for_large_matrices(monkeypatch, is_there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(eigenvalues, "_OnGpu", lambda side, device: (side, str(device)))
    large, small = eigenvalues.GPU_FROM, eigenvalues.GPU_FROM - 1
    assert (GramMatrix(large)._sum == (large, "cuda")) == is_there
    assert isinstance(GramMatrix(small)._sum, eigenvalues._Dense)


def test_a_large_matrix_of_low_rank_has_few_values():
    """At the size where the native code is used: rounding must not look like rank."""
    rng = np.random.default_rng(8)
    n = eigenvalues.NATIVE_FROM + 10
    sigma = np.array([1.0, 0.5, 0.25, 1e-3])
    matrix = orthonormal(rng, n, 4) * sigma @ orthonormal(rng, n, 4).T
    found = svd_of_matrix(matrix, method="gram").singular_values
    np.testing.assert_allclose(found[:4], sigma, rtol=1e-8)
    assert found[4:].max() <= 1e-7
    assert np.count_nonzero(found) < 20
