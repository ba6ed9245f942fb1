"""Rows of a CSV file that a benchmark measures one by one, so that the same command resumes.

    rows = Rows(folder / "growth.csv")
    rows.measured({"axis": "rank", "at": 8}, lambda: {"seconds": 2.5})
    rows.frame

A row is measured again if the code has changed; delete the file to measure all of them again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import lowrank_study
from lowrank_study.hashing import sha256_of_files


class Rows:
    """The rows of one file; those that other code has measured are dropped."""

    def __init__(self, path: Path) -> None:
        self._path, self._code = path, _code()
        known = pd.read_csv(path, dtype={"code": str}).to_dict("records") if path.is_file() else []
        self._rows: list[dict[str, Any]] = [row for row in known if row.get("code") == self._code]

    @property
    def frame(self) -> pd.DataFrame:
        """All rows, in the order in which they were measured."""
        return pd.DataFrame(self._rows)

    def measured(
        self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the row with a key; measure and write it if the file lacks it."""
        for row in self._rows:
            if key.items() <= row.items():
                return row
        row = {**key, **measure(), "code": self._code}
        self._rows.append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.frame.to_csv(self._path, index=False)
        return row


def _code() -> str:
    """Return a hash of the package's code, Python and native."""
    package = Path(lowrank_study.__file__).parent
    files = [path for suffix in ("py", "c") for path in package.rglob(f"*.{suffix}")]
    return sha256_of_files(package, [str(path.relative_to(package)) for path in files])[:8]
