"""Weights and adapters on disk, in every format that can be read exactly.

    with open_weights("before") as before, open_weights("after") as after:
        for match, W0_OI, W_OI in pair(before, after).read_matrices():
            delta_OI = W_OI - W0_OI

`formats/` reads files, `matrices/` finds the linear maps in them, `pairing/` compares two
checkpoints, and `adapters/` computes the updates of adapters. Other packages import from here.
Every faulty file raises an `InputError` of one line that names file, tensor and remedy.
"""

from lowrank_study.checkpoints.adapters import Adapter, open_adapter
from lowrank_study.checkpoints.adapters.saving import save_adapter
from lowrank_study.checkpoints.formats import (
    Array,
    SourceFile,
    coarser,
    refuse_several_adapters,
    shown,
)
from lowrank_study.checkpoints.matrices import Matrix, find_matrices
from lowrank_study.checkpoints.names import canonical, is_vocabulary, module_of
from lowrank_study.checkpoints.pairing.architecture import is_adapter
from lowrank_study.checkpoints.pairing.match import Match
from lowrank_study.checkpoints.pairing.pairing import Pairing, pair
from lowrank_study.checkpoints.pairing.unpaired import Unpaired, left_out_parts
from lowrank_study.checkpoints.weights import Weights, open_weights

__all__ = [
    "Adapter",
    "Array",
    "Match",
    "Matrix",
    "Pairing",
    "SourceFile",
    "Unpaired",
    "Weights",
    "canonical",
    "coarser",
    "find_matrices",
    "is_adapter",
    "is_vocabulary",
    "left_out_parts",
    "module_of",
    "open_adapter",
    "open_weights",
    "pair",
    "refuse_several_adapters",
    "save_adapter",
    "shown",
]
