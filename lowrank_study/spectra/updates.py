"""The update ΔW of one weight matrix, dense or as the factors of an adapter.

    update = FactoredUpdate(
        name="encoder.layer.0.attention.self.query", layer=0, role="query",
        storage_dtype="float32", B_OR=B_OR, A_RI=A_RI, scaling=2.0, W0_OI=None,
    )
    update.shape                             # (out features, in features)
    update.decompose("gram").singular_values  # without forming scaling * B @ A

`update_of_match` returns the update of a matrix that two checkpoints share; `adapter_updates.py`
reads those of adapters.

Axis suffixes: O out features, I in features, R adapter rank. Orientation is always (out, in).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lowrank_study.checkpoints import Match
from lowrank_study.errors import InputError
from lowrank_study.spectra import rounding, subspaces, svd
from lowrank_study.spectra.precision import dtype_of_difference

FloatArray = npt.NDArray[np.floating[Any]]
MeasureMethod = Literal["gram", "svd", "certified"]

CERTIFIED_SHARES = (0.90, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update(ABC):
    """The update `delta = W - W0` of one matrix."""

    name: str
    """Module path, such as "bert.encoder.layer.0.attention.self.query"."""
    layer: int | None
    """Layer number, or None outside of a numbered stack."""
    role: str
    """Function of the matrix in its layer: "query", "mlp_up", or the last part of the path."""
    storage_dtype: str
    """Coarsest dtype its numbers have been through: "float32", "bfloat16", "float16", ..."""
    W0_OI: FloatArray | None
    """Pretrained weight if known; float32 or wider."""

    def __post_init__(self) -> None:
        """Refuse a W0 of another shape."""
        if self.W0_OI is not None and self.W0_OI.shape != self.shape:
            raise InputError(
                f"{self.name!r}: W0_OI has shape {self.W0_OI.shape}, but the update has "
                f"{self.shape}; give the same matrix, both (out, in)"
            )

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out features, in features)."""

    @property
    @abstractmethod
    def rank_eps(self) -> float:
        """Machine epsilon of the arithmetic behind the entries, for the numerical rank."""

    @abstractmethod
    def decompose(self, method: MeasureMethod) -> svd.Decomposition:
        """Return the singular values; factors ignore the method."""

    @abstractmethod
    def rounding_floor(self) -> rounding.RoundingFloor:
        """Estimate what rounding in storage adds to the update."""

    @abstractmethod
    def leading_directions(self, k: int) -> subspaces.Directions:
        """Return the first k singular directions, or fewer if the rank is lower.

        Directions whose singular value is below 1e-12 sigma_1 are arbitrary and left out.
        """

    @abstractmethod
    def frobenius_norm(self) -> float:
        """Return the Frobenius norm."""

    @abstractmethod
    def dense(self) -> FloatArray:
        """Return the update as one matrix."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseUpdate(Update):
    """An update given as a matrix.

    With `W0_OI`, it is the difference of two stored checkpoints and holds the rounding errors of
    both. Without `W0_OI`, it is a matrix that was stored or computed itself.
    """

    delta_OI: FloatArray

    def __post_init__(self) -> None:
        """Refuse arrays that are not one matrix."""
        _check_matrix(self.name, "delta_OI", self.delta_OI)
        Update.__post_init__(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(out features, in features)."""
        return self.delta_OI.shape[0], self.delta_OI.shape[1]

    @property
    def rank_eps(self) -> float:
        """Machine epsilon of float64 or, for coarser storage, float32."""
        exact = self.storage_dtype == "float64"
        return float(np.finfo(np.float64 if exact else np.float32).eps)

    def decompose(self, method: MeasureMethod) -> svd.Decomposition:
        """Return the singular values; "certified" covers the shares `CERTIFIED_SHARES`."""
        if method == "certified":
            return svd.certified_svd(self.delta_OI, shares=CERTIFIED_SHARES)
        return svd.svd_of_matrix(self.delta_OI, method=method)

    def rounding_floor(self) -> rounding.RoundingFloor:
        """Estimate the rounding of both checkpoints, or of the matrix itself without W0."""
        return rounding.rounding_floor(self.W0_OI, self.delta_OI, self.storage_dtype)

    def leading_directions(self, k: int) -> subspaces.Directions:
        """Return the first k singular directions, or fewer if the rank is lower."""
        return subspaces.directions_of(self.delta_OI, k)

    def frobenius_norm(self) -> float:
        """Return the Frobenius norm."""
        return svd.frobenius_norm(self.delta_OI)

    def dense(self) -> FloatArray:
        """Return the matrix itself."""
        return self.delta_OI


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactoredUpdate(Update):
    """An update `scaling * B_OR @ A_RI`, given by stored factors.

    Rounding of the factors moves its singular values, but its rank stays at most R.
    """

    B_OR: FloatArray
    A_RI: FloatArray
    scaling: float
    """alpha / rank, or alpha / sqrt(rank)."""

    def __post_init__(self) -> None:
        """Refuse factors that do not multiply."""
        _check_matrix(self.name, "B_OR", self.B_OR)
        _check_matrix(self.name, "A_RI", self.A_RI)
        if self.B_OR.shape[1] != self.A_RI.shape[0]:
            raise InputError(
                f"{self.name!r}: B_OR {self.B_OR.shape} and A_RI {self.A_RI.shape} do not "
                "multiply; B_OR needs as many columns as A_RI has rows"
            )
        Update.__post_init__(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(out features, in features)."""
        return self.B_OR.shape[0], self.A_RI.shape[1]

    @property
    def rank_eps(self) -> float:
        """Machine epsilon of float64: factors are exact numbers, and so is their product's rank.

        A 16-bit epsilon would exceed sigma_1 itself; 16-bit noise belongs to the rounding floor.
        """
        return float(np.finfo(np.float64).eps)

    def decompose(self, method: MeasureMethod) -> svd.Decomposition:
        """Return the singular values without forming the product."""
        return svd.svd_of_product(self.B_OR, self.A_RI, self.scaling)

    def rounding_floor(self) -> rounding.RoundingFloor:
        """Estimate how far rounding of the factors moves the singular values."""
        return rounding.rounding_floor_of_factors(
            self.B_OR, self.A_RI, self.scaling, self.storage_dtype
        )

    def leading_directions(self, k: int) -> subspaces.Directions:
        """Return the first k singular directions, or fewer if the rank is lower."""
        return subspaces.directions_of_product(self.B_OR, self.A_RI, self.scaling, k)

    def frobenius_norm(self) -> float:
        """Return the Frobenius norm, from the singular values."""
        return float(np.linalg.norm(self.leading_directions(min(self.shape)).singular_values))

    def dense(self) -> FloatArray:
        """Return the product as a float64 matrix."""
        B_OR, A_RI = self.B_OR.astype(np.float64), self.A_RI.astype(np.float64)
        return np.asarray((self.scaling * B_OR) @ A_RI)


def _check_matrix(name: str, label: str, array: FloatArray) -> None:
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name!r}: {label} has shape {array.shape}; "
            "an update is a matrix with both sides at least 1"
        )


def update_of_match(
    match: Match, W0_OI: FloatArray, W_OI: FloatArray, *, roles: Mapping[str, str]
) -> DenseUpdate:
    """Return the update of one matrix that two checkpoints share.

    The difference is taken in float64, where it is exact.

    `roles` maps the last parts of a module path to its role, such as
    {"attention.self.query": "query"}; see `role_in`.
    """
    delta_OI = np.subtract(W_OI, W0_OI, dtype=np.float64)
    return DenseUpdate(
        name=match.name,
        layer=layer_of(match.name),
        role=role_in(match.name, roles),
        storage_dtype=dtype_of_difference(
            W0_OI, W_OI, delta_OI, dtypes=(match.before.storage_dtype, match.after.storage_dtype)
        ),
        delta_OI=delta_OI,
        W0_OI=W0_OI,
    )


def role_in(name: str, roles: Mapping[str, str]) -> str:
    """Return the role of the longest key that a module path ends with, or `role_of` the path."""
    fitting = [key for key in roles if f".{name}".endswith(f".{key}")]
    return roles[max(fitting, key=len)] if fitting else role_of(name)


def layer_of(name: str) -> int | None:
    """Return the first number in a module path, or None if it has no number.

    `layer_of("bert.encoder.layer.3.output.dense")` is 3; `layer_of("classifier")` is None.
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def role_of(name: str) -> str:
    """Return what follows the layer number in a module path, without further numbers.

    "bert.encoder.layer.3.attention.self.query" gives "attention.self.query". The whole rest is
    kept because modules of a layer may end alike ("attention.output.dense", "output.dense"). A
    path with nothing after the layer number gives its last component that is not a number.
    """
    parts = name.split(".")
    numbers = [position for position, part in enumerate(parts) if part.isdecimal()]
    words = [part for part in parts if not part.isdecimal()]
    after = [part for part in parts[numbers[0] :] if not part.isdecimal()] if numbers else []
    return ".".join(after) or (words[-1] if words else name)
