"""Names of tensors without the wrappers a training script left in them.

DistributedDataParallel, `torch.compile`, FSDP and PEFT each put a part into the names of the
parameters they wrap. Two checkpoints of one model then seem to share nothing:

    strip_wrappers(["module._orig_mod.encoder.weight"])
    # {"encoder.weight": "module._orig_mod.encoder.weight"}
"""

from collections.abc import Iterable

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.errors import InputError

_LEADING = ("module.", "base_model.model.")
"""Stripped at the beginning only; inside a name these words belong to the model."""

_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Stripped wherever they are a part of the name: compile and FSDP wrap single blocks too."""


def strip_name(name: str) -> str:
    """Return `name` without wrapper parts; at least one part is always kept."""
    stripped = name
    if any(word in name for word in _ANYWHERE):
        parts = [part for part in name.split(".") if part not in _ANYWHERE]
        stripped = ".".join(parts) if parts else name
    while stripped.startswith(_LEADING) and stripped not in _LEADING:
        prefix = next(word for word in _LEADING if stripped.startswith(word))
        stripped = stripped[len(prefix) :]
    return stripped


def strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Map every stripped name to the name in the file.

    Raises:
        InputError: two names strip to the same one, so it is unclear which one is meant.
    """
    result: dict[str, str] = {}
    for name in names:
        stripped = strip_name(name)
        if stripped in result:
            raise InputError(
                f"tensors {shown(result[stripped])} and {shown(name)} are both "
                f"{shown(stripped)} without wrapper prefixes; save the unwrapped model once"
            )
        result[stripped] = name
    return result
