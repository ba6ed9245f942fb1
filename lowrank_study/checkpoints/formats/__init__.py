"""File formats of weights: each file is checked before anything in it is believed."""

from lowrank_study.checkpoints.formats.folder import CONFIG_NAME, refuse_several_adapters
from lowrank_study.checkpoints.formats.json_text import parse_json, read_json
from lowrank_study.checkpoints.formats.source_file import Closing, SourceFile, damaged, shown
from lowrank_study.checkpoints.formats.tensors import Array, TensorInfo, coarser

__all__ = [
    "CONFIG_NAME",
    "Array",
    "Closing",
    "SourceFile",
    "TensorInfo",
    "coarser",
    "damaged",
    "parse_json",
    "read_json",
    "refuse_several_adapters",
    "shown",
]
