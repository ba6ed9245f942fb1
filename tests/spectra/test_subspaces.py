"""Subspace measures on planted directions, and against their chance levels."""

import math

import numpy as np
import pytest

from lowrank_study.errors import InputError
from lowrank_study.spectra.against_base import (
    amplification,
    intruder_dimensions,
    left_singular_vectors,
    overlap_with_base,
    projected_norm,
    random_projected_norm,
)
from lowrank_study.spectra.subspaces import (
    chance_similarity,
    principal_angles,
    similarity_grid,
    subspace_similarity,
)
from lowrank_study.spectra.updates import DenseUpdate, FactoredUpdate


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def dense(delta, W0=None):
    return DenseUpdate(
        name="layer.0.q",
        layer=0,
        role="q",
        storage_dtype="float64",
        delta_OI=delta,
        W0_OI=W0,
    )


def factored(B, A, scaling=1.0, W0=None):
    return FactoredUpdate(
        name="layer.0.q",
        layer=0,
        role="q",
        storage_dtype="float64",
        B_OR=B,
        A_RI=A,
        scaling=scaling,
        W0_OI=W0,
    )


def aligned(first, second):
    """|cos| between corresponding columns."""
    return np.abs(np.sum(first * second, axis=0))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("k", [3, 30])
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_planted_directions_are_found(shape, k, unit):
    rng = np.random.default_rng(0)
    m, n = shape
    U, V = orthonormal(rng, m, 35), orthonormal(rng, n, 35)
    sigma = np.linspace(3.0, 0.1, 35) * unit
    found = dense(U * sigma @ V.T).leading_directions(k)
    np.testing.assert_allclose(found.singular_values, sigma[:k], rtol=1e-12)
    np.testing.assert_allclose(aligned(found.U_OK, U[:, :k]), 1.0, rtol=1e-10)
    np.testing.assert_allclose(aligned(found.V_IK, V[:, :k]), 1.0, rtol=1e-10)
    # The pair has to belong together in sign.
    projected = found.U_OK.T @ (U * (sigma / unit) @ V.T) @ found.V_IK
    np.testing.assert_allclose(projected, np.diag(sigma[:k] / unit), atol=1e-12)


def test_directions_of_factors_are_those_of_their_product():
    rng = np.random.default_rng(1)
    B, A = rng.standard_normal((60, 5)), rng.standard_normal((5, 40))
    of_factors = factored(B, A, -0.5).leading_directions(5)
    of_product = dense(-0.5 * B @ A).leading_directions(5)
    np.testing.assert_allclose(of_factors.singular_values, of_product.singular_values, rtol=1e-12)
    np.testing.assert_allclose(aligned(of_factors.U_OK, of_product.U_OK), 1.0, rtol=1e-12)
    rebuilt = of_factors.U_OK * of_factors.singular_values @ of_factors.V_IK.T
    np.testing.assert_allclose(rebuilt, -0.5 * B @ A, atol=1e-12)


def test_small_directions_are_not_lost_in_a_gram_matrix():
    rng = np.random.default_rng(2)
    U, V = orthonormal(rng, 60, 4), orthonormal(rng, 50, 4)
    sigma = np.array([1.0, 1e-3, 1e-7, 1e-10])
    found = dense(U * sigma @ V.T).leading_directions(4)
    np.testing.assert_allclose(found.singular_values, sigma, rtol=1e-5)
    np.testing.assert_allclose(aligned(found.U_OK, U), 1.0, atol=1e-5)


def test_there_are_no_more_directions_than_the_rank():
    rng = np.random.default_rng(3)
    B, A = rng.standard_normal((30, 2)), rng.standard_normal((2, 20))
    assert dense(B @ A).leading_directions(4).singular_values.size == 2
    assert factored(B[:, [0, 0]], A).leading_directions(2).singular_values.size == 1
    assert dense(np.zeros((3, 4))).leading_directions(2).U_OK.shape == (3, 0)
    assert factored(0 * B, A).leading_directions(2).V_IK.shape == (20, 0)


def test_similarity_is_one_inside_zero_across_and_in_between_by_angle():
    basis = np.eye(6)
    assert subspace_similarity(basis[:, :2], basis[:, :4], 2, 4) == 1.0
    assert subspace_similarity(basis[:, :2], basis[:, 2:4], 2, 2) == 0.0
    assert subspace_similarity(basis[:, :2], basis[:, 1:3], 2, 2) == 0.5
    line = np.array([[math.cos(0.3)], [math.sin(0.3)]])
    assert subspace_similarity(np.eye(2)[:, :1], line, 1, 1) == pytest.approx(
        math.cos(0.3) ** 2, rel=1e-14
    )


def test_similarity_does_not_depend_on_the_basis_or_a_rotation():
    rng = np.random.default_rng(4)
    first, second = orthonormal(rng, 30, 4), orthonormal(rng, 30, 7)
    expected = subspace_similarity(first, second, 4, 7)
    assert subspace_similarity(second, first, 7, 4) == pytest.approx(expected, rel=1e-12)
    turned = first @ orthonormal(rng, 4, 4)
    assert subspace_similarity(turned, second, 4, 7) == pytest.approx(expected, rel=1e-12)
    space = orthonormal(rng, 30, 30)
    assert subspace_similarity(space @ first, space @ second, 4, 7) == pytest.approx(
        expected, rel=1e-12
    )


def test_grid_holds_every_similarity():
    rng = np.random.default_rng(5)
    first, second = orthonormal(rng, 20, 3), orthonormal(rng, 20, 5)
    grid = similarity_grid(first, second)
    for i in range(1, 4):
        for j in range(1, 6):
            direct = np.linalg.norm(first[:, :i].T @ second[:, :j]) ** 2 / min(i, j)
            assert grid[i - 1, j - 1] == pytest.approx(direct, rel=1e-12)
            assert subspace_similarity(first, second, i, j) == pytest.approx(direct, rel=1e-12)


def test_chance_similarity_is_that_of_random_subspaces():
    rng = np.random.default_rng(6)
    d, trials = 64, 300
    grids = [similarity_grid(orthonormal(rng, d, 4), orthonormal(rng, d, 8)) for _ in range(trials)]
    mean = np.mean(grids, axis=0)
    for i, j in ((1, 1), (2, 8), (4, 4), (4, 8)):
        assert mean[i - 1, j - 1] == pytest.approx(chance_similarity(i, j, dimension=d), rel=0.15)
    assert chance_similarity(4, 8, dimension=64) == 0.125


def test_principal_angles_are_exact_even_when_tiny():
    angles = np.array([1e-9, 0.2, 1.5])
    basis = np.eye(6)
    second = basis[:, :3] * np.cos(angles) + basis[:, 3:] * np.sin(angles)
    rng = np.random.default_rng(7)
    space, turn = orthonormal(rng, 6, 6), orthonormal(rng, 3, 3)
    found = principal_angles(space @ basis[:, :3], space @ second @ turn)
    np.testing.assert_allclose(found, angles, rtol=1e-6)
    phi = subspace_similarity(basis[:, :3], second, 3, 3)
    assert phi == pytest.approx(float(np.mean(np.cos(angles) ** 2)), rel=1e-12)


def test_bases_that_do_not_fit_are_refused():
    a, b = np.eye(4)[:, :2], np.eye(5)[:, :2]
    for call in (
        lambda: subspace_similarity(a, b, 1, 1),
        lambda: similarity_grid(a, b),
        lambda: principal_angles(a, b),
    ):
        with pytest.raises(InputError, match="one space"):
            call()
    with pytest.raises(InputError, match="counted from 1"):
        subspace_similarity(a, a, 0, 1)
    with pytest.raises(InputError, match="counted from 1"):
        subspace_similarity(a, a, 1, 3)
    with pytest.raises(InputError, match="no directions"):
        similarity_grid(a, np.zeros((4, 0)))
    with pytest.raises(InputError, match="dimension 4"):
        chance_similarity(1, 5, dimension=4)
    with pytest.raises(InputError, match="at least 1"):
        dense(np.eye(2)).leading_directions(0)


def test_random_column_of_the_lora_papers_table_7():
    for rank, printed in ((4, 0.02), (64, 0.33)):
        assert random_projected_norm(61.95, rank, (12288, 12288)) == pytest.approx(
            printed, abs=0.01
        )


def test_random_projected_norm_is_its_root_mean_square():
    rng = np.random.default_rng(8)
    W = rng.standard_normal((40, 70)) * np.linspace(0.1, 2.0, 70)
    squares = [
        projected_norm(W, orthonormal(rng, 40, 4), orthonormal(rng, 70, 4)) ** 2 for _ in range(400)
    ]
    expected = random_projected_norm(float(np.linalg.norm(W)), 4, (40, 70))
    assert math.sqrt(np.mean(squares)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_amplification_of_a_planted_update(form):
    rng = np.random.default_rng(9)
    U, V = orthonormal(rng, 50, 6), orthonormal(rng, 30, 6)
    # W0 has little where the update is, and much elsewhere.
    W0 = 0.1 * U[:, :2] @ V[:, :2].T + U[:, 2:] * [9.0, 8.0, 7.0, 6.0] @ V[:, 2:].T
    B, A = U[:, :2] * [2.0, 1.0], V[:, :2].T
    update = dense(B @ A, W0) if form == "dense" else factored(B / 4, A, 4.0, W0)
    found = amplification(update, k=2)
    assert found.update_norm == pytest.approx(math.sqrt(5.0), rel=1e-12)
    assert found.base_norm == pytest.approx(math.sqrt(0.02 + 81 + 64 + 49 + 36), rel=1e-12)
    assert found.projected_norm == pytest.approx(math.sqrt(0.02), rel=1e-12)
    assert found.factor == pytest.approx(math.sqrt(250.0), rel=1e-12)
    assert found.random_projected_norm == pytest.approx(
        found.base_norm * 2 / math.sqrt(1500), rel=1e-12
    )


def test_amplification_uses_the_whole_norm_and_its_leading_directions():
    rng = np.random.default_rng(10)
    W0 = rng.standard_normal((12, 9))
    delta = rng.standard_normal((12, 9))
    U, sigma, Vt = np.linalg.svd(delta)
    found = amplification(dense(delta, W0), k=3)
    assert found.update_norm == pytest.approx(np.linalg.norm(sigma), rel=1e-12)
    assert found.projected_norm == pytest.approx(
        np.linalg.norm(U[:, :3].T @ W0 @ Vt[:3].T), rel=1e-10
    )


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_overlap_with_the_top_directions_of_the_base(form):
    rng = np.random.default_rng(11)
    U, V = orthonormal(rng, 40, 40), orthonormal(rng, 60, 40)
    W0 = U * np.linspace(5.0, 1.0, 40) @ V.T
    # 3/4 of the energy reads from V's top 2, all of it writes outside of U's top 2.
    B, A = U[:, [10, 11]] * [math.sqrt(3.0), 1.0], V[:, [0, 20]].T
    update = dense(B @ A, W0) if form == "dense" else factored(B, A, 1.0, W0)
    found = overlap_with_base(update, k=2)
    assert found.right == pytest.approx(0.75, rel=1e-12)
    assert found.left == pytest.approx(0.0, abs=1e-12)
    assert (found.left_chance, found.right_chance) == (2 / 40, 2 / 60)


def test_overlap_of_noise_is_at_chance():
    rng = np.random.default_rng(12)
    W0, delta = rng.standard_normal((2, 100, 100))
    found = overlap_with_base(dense(delta, W0), k=10)
    assert found.left == pytest.approx(found.left_chance, rel=0.15)
    assert found.right == pytest.approx(found.right_chance, rel=0.15)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_all_left_singular_vectors(shape):
    rng = np.random.default_rng(13)
    matrix = rng.standard_normal(shape) * 1e20
    found = left_singular_vectors(matrix)
    expected = np.linalg.svd(matrix, full_matrices=False)[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(aligned(found, expected), 1.0, rtol=1e-8)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("form", ["dense", "factored"])
def test_a_planted_intruder_is_found_and_only_it(shape, form):
    rng = np.random.default_rng(14)
    m, n = shape
    U, V = orthonormal(rng, m, min(m, n)), orthonormal(rng, n, min(m, n))
    sigma = np.linspace(10.0, 1.0, min(m, n))
    W0 = U * sigma @ V.T
    # A new direction, spread evenly over many of the old ones, above the third of them.
    new_left = U[:, 15:35].sum(axis=1, keepdims=True) / math.sqrt(20)
    new_right = V[:, 15:35].sum(axis=1, keepdims=True) / math.sqrt(20)
    B, A = new_left * 1e3, new_right.T / 1e2
    update = dense(B @ A, W0) if form == "dense" else factored(B, A, 1.0, W0)
    found = intruder_dimensions(update, left_singular_vectors(W0), k=10, epsilon=0.5)
    assert found.positions == (1,)
    assert found.k == 10
    assert found.largest_cosines[0] == pytest.approx(1 / math.sqrt(20), rel=0.4)
    assert min(found.largest_cosines[1:]) > 0.9


def test_no_update_has_no_intruders_and_amplifying_an_old_direction_makes_none():
    rng = np.random.default_rng(15)
    W0 = rng.standard_normal((40, 30))
    left = left_singular_vectors(W0)
    still = intruder_dimensions(dense(np.zeros_like(W0), W0), left, k=10, epsilon=0.5)
    assert still.positions == ()
    np.testing.assert_allclose(still.largest_cosines, 1.0, rtol=1e-9)
    U, _, Vt = np.linalg.svd(W0)
    louder = factored(50.0 * U[:, 20:21], Vt[20:21], 1.0, W0)
    assert intruder_dimensions(louder, left, k=10, epsilon=0.5).positions == ()


def test_the_thresholds_decide():
    rng = np.random.default_rng(16)
    W0, delta = rng.standard_normal((2, 30, 30))
    left = left_singular_vectors(W0)
    found = intruder_dimensions(dense(delta, W0), left, k=30, epsilon=1.0)
    assert len(found.positions) == 30
    cosines = np.array(found.largest_cosines)
    middle = float(np.median(cosines)) + 1e-9
    half = intruder_dimensions(dense(delta, W0), left, k=30, epsilon=middle)
    assert half.positions == tuple(np.flatnonzero(cosines < middle) + 1)


def test_a_base_of_low_rank_has_as_many_directions_as_its_rank() -> None:
    found = overlap_with_base(dense(np.eye(32), np.ones((32, 32))), k=8)
    assert found.k == 1
    assert found.left == pytest.approx(1 / 32)
    assert found.left_chance == 1 / 32
    with pytest.raises(InputError, match="is zero, without directions"):
        overlap_with_base(dense(np.eye(4), np.zeros((4, 4))), k=1)


def test_invalid_arguments_are_refused():
    W0 = np.eye(4)
    update = dense(np.ones((4, 4)), W0)
    left = left_singular_vectors(W0)
    for call in (
        lambda: amplification(dense(np.ones((4, 4))), k=1),
        lambda: overlap_with_base(dense(np.ones((4, 4))), k=1),
        lambda: intruder_dimensions(dense(np.ones((4, 4))), left, k=1, epsilon=0.5),
    ):
        with pytest.raises(InputError, match="no W0_OI"):
            call()
    for call in (
        lambda: amplification(dense(0 * W0, W0), k=1),
        lambda: overlap_with_base(dense(0 * W0, W0), k=1),
        lambda: overlap_with_base(factored(np.zeros((4, 1)), np.ones((1, 4)), 1.0, W0), k=1),
    ):
        with pytest.raises(InputError, match="zero update"):
            call()
    with pytest.raises(InputError, match="directions of W0"):
        overlap_with_base(update, k=5)
    with pytest.raises(InputError, match="directions of W0"):
        overlap_with_base(update, k=0)
    with pytest.raises(InputError, match=r"give 1..4"):
        intruder_dimensions(update, left, k=5, epsilon=0.5)
    with pytest.raises(InputError, match="epsilon"):
        intruder_dimensions(update, left, k=1, epsilon=0.0)
    with pytest.raises(InputError, match="left_singular_vectors"):
        intruder_dimensions(update, left[:, :2], k=1, epsilon=0.5)
    with pytest.raises(InputError, match="zero matrix"):
        left_singular_vectors(np.zeros((2, 2)))
