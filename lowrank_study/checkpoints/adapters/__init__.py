"""Adapters on disk: the exact update of each module of the base model.

Each format has one reader (`peft`, `diffusion`, `mlx`, `gguf`), which sorts a file's tensors into
`Content`; `opening` chooses the reader. `Adapter` computes the updates of any format.
"""

from lowrank_study.checkpoints.adapters.adapter import Adapter
from lowrank_study.checkpoints.adapters.content import Factors
from lowrank_study.checkpoints.adapters.opening import open_adapter

__all__ = ["Adapter", "Factors", "open_adapter"]
