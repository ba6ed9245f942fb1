"""Adapters on disk: exactly what each one adds to which module of the base model.

    with open_adapter("adapter") as adapter:
        for module in adapter.modules():
            B_OR, A_RI, scaling, storage_dtype = adapter.factors(module)
        for name in adapter.saved_weights():
            adapter.read(name)          # a full weight trained beside the factors

Each format has one reader (`peft`, `diffusion`, `mlx`, `gguf`), which sorts a file's tensors into
`Content`; `opening` chooses it. `Adapter` computes the updates from that, whatever the format.
"""

from lowrank_study.checkpoints.adapters.adapter import Adapter, Factors
from lowrank_study.checkpoints.adapters.opening import open_adapter

__all__ = ["Adapter", "Factors", "open_adapter"]
