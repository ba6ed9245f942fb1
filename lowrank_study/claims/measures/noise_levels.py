"""What each measure of rank reads on matrices that are noise, or hold a known rank in noise."""

import functools
import math

import numpy as np
import numpy.typing as npt
import torch

from lowrank_study.claims.measures.outcome import Outcome, computed, measure
from lowrank_study.errors import InputError
from lowrank_study.spectra import noise, ranks
from lowrank_study.spectra.subspaces import (
    chance_similarity,
    subspace_similarity,
)

Matrix = npt.NDArray[np.float64]


def _reading(name: str, sigma: npt.NDArray[np.float64], size: int) -> float:
    shape = (size, size)
    match name:
        case "energy_rank_90" | "energy_rank_99":
            return ranks.energy_rank(sigma, int(name[-2:]) / 100)
        case "effective_rank":
            return ranks.effective_rank(sigma)
        case "effective_rank_of_squares":
            return ranks.effective_rank(sigma**2)
        case "participation_ratio":
            return ranks.participation_ratio(sigma)
        case "stable_rank":
            return ranks.stable_rank(sigma)
        case "gavish_donoho_rank":
            tolerance = ranks.rank_tolerance(sigma, shape, float(np.finfo(np.float64).eps), 0.0)
            return noise.gavish_donoho_rank(sigma, shape, tolerance=tolerance)
        case "largest_over_edge":
            return float(sigma[0]) / noise.marchenko_pastur_edge(sigma, shape)
    raise InputError(f"measure of rank {name!r} is not one of those read on noise")


@functools.cache
def _gaussian_sigma(size: int, seed: int) -> npt.NDArray[np.float64]:
    return _sigma(np.random.default_rng(seed).standard_normal((size, size)))


def _sigma(matrix: Matrix) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def _low_rank(rank: int, size: int, norm: float, generator: np.random.Generator) -> Matrix:
    """Give a product of Gaussian factors, scaled to a Frobenius norm."""
    left, right = generator.standard_normal((size, rank)), generator.standard_normal((rank, size))
    product: Matrix = left @ right
    return product * (norm / np.linalg.norm(product))


@measure
def on_noise(measure_of_rank: str, size: int, seed: int, over_size: bool) -> Outcome:
    """Read one measure on an iid Gaussian matrix; `over_size` divides it by the size."""
    value = _reading(measure_of_rank, _gaussian_sigma(size, seed), size)
    how = f"{measure_of_rank} of a seeded {size} × {size} Gaussian matrix"
    return computed(value / size if over_size else value, how)


@measure
def on_rank_in_noise(
    measure_of_rank: str, rank: int, noise_over_signal: float, size: int, seed: int
) -> Outcome:
    """Read one measure on a matrix of known rank plus Gaussian noise of a relative norm."""
    generator = np.random.default_rng(seed)
    signal = _low_rank(rank, size, 1.0, generator)
    added = generator.standard_normal((size, size))
    added *= noise_over_signal / np.linalg.norm(added)
    how = f"{measure_of_rank} of rank {rank} plus noise of {noise_over_signal:g} its norm, {size}²"
    return computed(_reading(measure_of_rank, _sigma(signal + added), size), how)


@measure
def after_bf16_storage(
    measure_of_rank: str, rank: int, relative_norm: float, size: int, seed: int
) -> Outcome:
    """Read one measure on W - W0 of known rank, both stored in bf16; W0 is Gaussian."""
    generator = np.random.default_rng(seed)
    W0 = generator.standard_normal((size, size)) / math.sqrt(size)
    norm = relative_norm * float(np.linalg.norm(W0))
    W = W0 + _low_rank(rank, size, norm, generator)
    delta = _as_bf16(W) - _as_bf16(W0)
    how = f"{measure_of_rank} of a rank-{rank} ΔW, ‖ΔW‖/‖W‖ = {relative_norm:g}, both in bf16"
    return computed(_reading(measure_of_rank, _sigma(delta), size), how)


def _as_bf16(matrix: Matrix) -> Matrix:
    stored: Matrix = torch.from_numpy(matrix).bfloat16().double().numpy()
    return stored


@measure
def gavish_donoho_polynomial(coefficients: list[float], points: int) -> Outcome:
    """Give how far a polynomial in β is at most from the coefficient ω(β), over (0, 1]."""
    betas = np.linspace(1 / points, 1.0, points)
    errors = [
        abs(float(np.polyval(coefficients, beta)) - noise.gavish_donoho_coefficient(float(beta)))
        for beta in betas
    ]
    return computed(max(errors), f"largest |difference| over {points} values of β")


@measure
def chance_of_similarity(i: int, j: int, dimension: int, seed: int, draws: int) -> Outcome:
    """Give the mean φ(i, j) of random subspaces over the chance level that formula gives."""
    generator = np.random.default_rng(seed)
    found = [
        subspace_similarity(_basis(generator, dimension, i), _basis(generator, dimension, j), i, j)
        for _ in range(draws)
    ]
    level = chance_similarity(i, j, dimension=dimension)
    return computed(float(np.mean(found)) / level, f"mean of {draws} random pairs over {level:.3g}")


@measure
def similarity_by_distance(form: str, k: int, dimension: int, seed: int) -> Outcome:
    """Give how far φ is from a formula in the projection distance d² = ½‖UUᵀ - VVᵀ‖².

    `printed` is (1/p)(1 - d²), `corrected` is 1 - d²/p, with p = k directions on either side.

    Raises:
        InputError: The form is unknown.
    """
    generator = np.random.default_rng(seed)
    first, second = _basis(generator, dimension, k), _basis(generator, dimension, k)
    squared = 0.5 * float(np.linalg.norm(first @ first.T - second @ second.T) ** 2)
    forms = {"printed": (1 - squared) / k, "corrected": 1 - squared / k}
    if form not in forms:
        raise InputError(f"form={form!r}: valid are {', '.join(forms)}")
    error = abs(subspace_similarity(first, second, k, k) - forms[form])
    return computed(error, f"|φ - formula| of two random {k}-dimensional subspaces")


def _basis(generator: np.random.Generator, dimension: int, k: int) -> Matrix:
    basis: Matrix = np.linalg.qr(generator.standard_normal((dimension, k)))[0]
    return basis
