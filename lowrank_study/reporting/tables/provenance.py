"""Provenance as a table.

>>> flat_provenance({"versions": {"torch": "2.13"}}).to_numpy().tolist()
[['versions / torch', '2.13']]
"""

from collections.abc import Iterator, Mapping

import pandas as pd


def flat_provenance(provenance: Mapping[str, object]) -> pd.DataFrame:
    """Give nested provenance as two columns: the path of the item, and its value."""
    return pd.DataFrame(list(_items(provenance, "")), columns=["item", "value"], dtype=object)


def _items(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _items(inner, f"{path} / {key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield path, ", ".join(str(item) for item in value)
    else:
        yield path, str(value)
