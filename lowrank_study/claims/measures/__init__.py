"""The measures that claims call by name; `outcome.py` says what a measure is."""

import importlib
import pkgutil

from lowrank_study.claims.measures.outcome import CLAIM_MEASURES

for _module in pkgutil.iter_modules(__path__):  # a module registers its measures when imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["CLAIM_MEASURES"]
