"""Values of rank measures on matrices of noise, or of a known rank in noise."""

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from lowrank_study.claims.measures.outcome import Outcome, computed, measure
from lowrank_study.errors import InputError
from lowrank_study.spectra import noise, ranks
from lowrank_study.spectra.measures import MEASURE
from lowrank_study.spectra.spectrum import Spectrum
from lowrank_study.spectra.spectrum import measure as spectrum_of
from lowrank_study.spectra.subspaces import chance_similarity, subspace_similarity
from lowrank_study.spectra.updates import DenseUpdate

Matrix = npt.NDArray[np.float64]

READINGS: dict[str, Callable[[Spectrum], float | None]] = {
    name: row.value for name, row in MEASURE.items() if row.value is not None
} | {
    "effective_rank_of_squares": lambda s: ranks.effective_rank(s.singular_values**2),
    "largest_over_edge": lambda s: (
        float(s.singular_values[0]) / noise.marchenko_pastur_edge(s.singular_values, s.shape)
    ),
}
"""Measures of `spectra.measures`, and two that only the claims need."""


def _reading(name: str, spectrum: Spectrum) -> float:
    if name not in READINGS:
        raise InputError(f"measure_of_rank={name!r}: valid are {', '.join(READINGS)}")
    value = READINGS[name](spectrum)
    assert value is not None
    return value


@functools.cache
def _spectrum(kind: str, size: int, seed: int, rank: int, relative_norm: float) -> Spectrum:
    generator = np.random.default_rng(seed)
    if kind == "noise":
        matrix: Matrix = generator.standard_normal((size, size))
    elif kind == "rank plus noise":
        signal = _low_rank(rank, size, 1.0, generator)
        added = generator.standard_normal((size, size))
        matrix = signal + added * (relative_norm / np.linalg.norm(added))
    else:
        W0 = generator.standard_normal((size, size)) / math.sqrt(size)
        W = W0 + _low_rank(rank, size, relative_norm * float(np.linalg.norm(W0)), generator)
        stored, stored_before = (torch.from_numpy(m).bfloat16().double().numpy() for m in (W, W0))
        matrix = stored - stored_before
    update = DenseUpdate(
        name="matrix", layer=None, role="", storage_dtype="float64", W0_OI=None, delta_OI=matrix
    )
    return spectrum_of(update, method="svd")


def _low_rank(rank: int, size: int, norm: float, generator: np.random.Generator) -> Matrix:
    """Return a product of Gaussian factors with a Frobenius norm."""
    left, right = generator.standard_normal((size, rank)), generator.standard_normal((rank, size))
    product: Matrix = left @ right
    return product * (norm / np.linalg.norm(product))


KINDS = {
    "noise": "a seeded {size} × {size} Gaussian matrix",
    "rank plus noise": "a {size} × {size} matrix of rank {rank} plus noise of {norm:g} times "
    "its norm",
    "bf16": "a ΔW of rank {rank} with ‖ΔW‖/‖W‖ = {norm:g}, from W and W0 in bf16",
}


@measure
def rank_reading(
    measure_of_rank: str,
    kind: str,
    size: int,
    seed: int,
    rank: int = 0,
    relative_norm: float = 0.0,
    over_size: bool = False,
) -> Outcome:
    """Read one measure on a matrix of one of `KINDS`; `over_size` divides the value by the size."""
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: valid are {', '.join(KINDS)}")
    value = _reading(measure_of_rank, _spectrum(kind, size, seed, rank, relative_norm))
    named = KINDS[kind].format(size=size, rank=rank, norm=relative_norm)
    return computed(value / size if over_size else value, f"{measure_of_rank} of {named}")


@measure
def gavish_donoho_polynomial(coefficients: list[float], points: int) -> Outcome:
    """Return the largest error of a polynomial in β for the coefficient ω(β), over (0, 1]."""
    errors = [
        abs(float(np.polyval(coefficients, beta)) - noise.gavish_donoho_coefficient(float(beta)))
        for beta in np.linspace(1 / points, 1.0, points)
    ]
    return computed(max(errors), f"largest |difference| over {points} values of β")


@measure
def chance_of_similarity(i: int, j: int, dimension: int, seed: int, draws: int) -> Outcome:
    """Return the mean φ(i, j) of random subspaces over the chance level of the formula."""
    generator = np.random.default_rng(seed)
    found = [
        subspace_similarity(_basis(generator, dimension, i), _basis(generator, dimension, j), i, j)
        for _ in range(draws)
    ]
    level = chance_similarity(i, j, dimension=dimension)
    return computed(float(np.mean(found)) / level, f"mean of {draws} random pairs over {level:.3g}")


@measure
def similarity_by_distance(form: str, k: int, dimension: int, seed: int) -> Outcome:
    """Return the difference of φ from a formula in the projection distance d² = ½‖UUᵀ - VVᵀ‖².

    `printed` is (1/p)(1 - d²), `corrected` is 1 - d²/p, with p = k directions on either side.
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
