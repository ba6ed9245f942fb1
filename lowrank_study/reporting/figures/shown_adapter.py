"""Which adapter stands beside full fine-tuning where there is room for one.

    adapter = shown_adapter(data.spectra, highest=True)    # ("lora", "all_linear", 64)
    rows_of(frame, adapter)

The figures that have room for one adapter only choose it here, in the same way.
"""

import pandas as pd

Adapter = tuple[str, str, int]
"""Method, target and rank."""


def shown_adapter(spectra: pd.DataFrame, *, highest: bool) -> Adapter | None:
    """Choose the adapter with the most matrices; of its ranks the highest, or the middle one."""
    ranked = spectra[spectra["adapter_rank"].notna() & spectra["layer"].notna()]
    if not len(ranked):
        return None
    roles = ranked.groupby(["method", "target"])["role"].nunique()
    method, target = sorted(roles.index, key=lambda pair: (-int(roles.loc[pair]), pair))[0]
    rows = ranked[(ranked["method"] == method) & (ranked["target"] == target)]
    ranks = sorted({int(rank) for rank in rows["adapter_rank"]})
    return method, target, ranks[-1] if highest else ranks[(len(ranks) - 1) // 2]


def rows_of(frame: pd.DataFrame, adapter: Adapter | None) -> pd.DataFrame:
    """Give the rows of a table that belong to an adapter; none of them without one."""
    if adapter is None:
        return frame.iloc[:0]
    method, target, rank = adapter
    return frame[
        (frame["method"] == method)
        & (frame["target"] == target)
        & (frame["adapter_rank"].fillna(-1) == rank)
    ]
