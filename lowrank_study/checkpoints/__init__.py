"""Weights and adapters on disk, in all formats; refuses what it can't read exactly.

    with open_weights("before") as before, open_weights("after") as after:
        for match, W0_OI, W_OI in pair(before, after).read_matrices():
            delta_OI = W_OI - W0_OI

Everything wrong with a file is an `InputError` of one line that names file, tensor and remedy.
"""

from lowrank_study.checkpoints.adapters import Adapter, Factors, open_adapter
from lowrank_study.checkpoints.matrices import Matrix, find_matrices
from lowrank_study.checkpoints.pairing import Match, Pairing, pair
from lowrank_study.checkpoints.paths import SourceFile
from lowrank_study.checkpoints.save import save_adapter
from lowrank_study.checkpoints.tensors import TensorInfo
from lowrank_study.checkpoints.weights import Weights, open_weights

__all__ = [
    "Adapter",
    "Factors",
    "Match",
    "Matrix",
    "Pairing",
    "SourceFile",
    "TensorInfo",
    "Weights",
    "find_matrices",
    "open_adapter",
    "open_weights",
    "pair",
    "save_adapter",
]
