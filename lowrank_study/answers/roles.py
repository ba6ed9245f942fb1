"""The order of the roles of a layer's matrices: that in which data flow through the layer.

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
"""Other roles follow these in alphabetical order."""


def role_order(role: str) -> tuple[int, str]:
    """Return the sort key of a role."""
    return (ROLES.index(role), "") if role in ROLES else (len(ROLES), role)


def in_order(roles: Iterable[str]) -> list[str]:
    """Return the distinct roles in order."""
    return sorted(set(roles), key=role_order)


def roles_inside(spectra: pd.DataFrame) -> list[str]:
    """Return the roles of matrices inside the layers, in order."""
    return in_order(spectra.loc[spectra["layer"].notna(), "role"])
