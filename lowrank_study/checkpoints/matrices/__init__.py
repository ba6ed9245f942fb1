"""The linear maps of a checkpoint, each as one (out, in) matrix."""

from lowrank_study.checkpoints.matrices.finding import find_matrices, is_transposed, split_expert
from lowrank_study.checkpoints.matrices.fused import any_is, models_within
from lowrank_study.checkpoints.matrices.matrix import Matrix

__all__ = ["Matrix", "any_is", "find_matrices", "is_transposed", "models_within", "split_expert"]
