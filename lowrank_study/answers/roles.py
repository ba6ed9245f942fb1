"""The order in which the matrices of a layer are named: that of the data through it.

>>> in_order(["value", "mlp_up", "conv1", "query"])
['query', 'value', 'mlp_up', 'conv1']
"""

from collections.abc import Iterable

import pandas as pd

ROLES = (
    "query",
    "key",
    "value",
    "query_key_value",
    "attention_output",
    "mlp_gate",
    "mlp_up",
    "mlp_down",
)
"""Roles in their order; any other comes after these, in alphabetical order."""


def role_order(role: str) -> tuple[int, str]:
    """Give what roles are sorted by."""
    return (ROLES.index(role), "") if role in ROLES else (len(ROLES), role)


def in_order(roles: Iterable[str]) -> list[str]:
    """Give different roles in their order."""
    return sorted(set(roles), key=role_order)


def roles_inside(spectra: pd.DataFrame) -> list[str]:
    """Give the roles inside the layers, in their order."""
    return in_order(spectra.loc[spectra["layer"].notna(), "role"])
