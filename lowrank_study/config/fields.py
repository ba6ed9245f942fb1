"""Read settings one by one, with errors that name the setting and its valid values.

>>> Fields("task.", {"max_length": 64}).integer("max_length", at_least=4)
64
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_study.errors import InputError


class Fields:
    """A mapping of the configuration; `path` comes before its names in errors, as in `task.`."""

    def __init__(self, path: str, mapping: Any) -> None:
        if not isinstance(mapping, Mapping):
            raise InputError(f"{path.rstrip('.')}={mapping!r}: a mapping of settings is needed")
        self.path = path
        self._mapping = mapping

    @property
    def settings(self) -> list[str]:
        """Names of the settings in this mapping."""
        return [str(key) for key in self._mapping]

    def mapping(self) -> dict[str, Any]:
        """Return all settings, unchecked."""
        return {str(key): value for key, value in self._mapping.items()}

    def value(self, key: str) -> Any:
        """Return a setting, unchecked; refuse one that is missing."""
        if key not in self._mapping:
            raise InputError(
                f"{self.path}{key} is missing: the settings here are {', '.join(self.settings)}"
            )
        return self._mapping[key]

    def part(self, key: str) -> "Fields":
        """Return a nested mapping."""
        return Fields(f"{self.path}{key}.", self.value(key))

    def optional_part(self, key: str) -> "Fields":
        """Return a nested mapping; null gives an empty one."""
        return Fields(f"{self.path}{key}.", {} if self.value(key) is None else self.value(key))

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.value(key)
        if not isinstance(value, str):
            raise InputError(f"{self.path}{key}={value!r}: a text is needed")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a text, or None for null."""
        return None if self._mapping.get(key) is None else self.text(key)

    def path_text(self, key: str) -> str:
        """Return a path or a hub id; a leading `~` or environment variable is expanded.

        A path that exists is returned unchanged. Only the beginning is expanded, since names may
        contain `$` and `~`.
        """
        text = self.text(key) if self.value(key) is not None else ""
        if not text:
            raise InputError(f"{self.path}{key} is empty: give a path, as in {self.path}{key}=PATH")
        if not text.startswith(("~", "$")):
            return text
        if os.path.lexists(text):
            return os.path.abspath(text)
        first, slash, rest = text.partition("/")
        return os.path.expanduser(os.path.expandvars(first)) + slash + rest

    def path_of(self, key: str) -> Path:
        """Return a path; see `path_text`."""
        return Path(self.path_text(key))

    def utf8_path_text(self, key: str) -> str:
        """Return a path as `path_text` does, for libraries that accept only UTF-8 names."""
        text = self.path_text(key)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.path}{key}={text}: the name is not UTF-8, and the libraries that write and "
                "read weights (safetensors, tokenizers) can't open it: rename it"
            ) from error
        return text

    def texts(self) -> dict[str, str]:
        """Return all settings, which must be texts."""
        return {key: self.text(key) for key in self.settings}

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names; a single name is a list of one."""
        value = self.value(key)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise InputError(f"{self.path}{key}={value!r}: a name or a list of names is needed")
        return tuple(str(name) for name in listed)

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        value = self.value(key)
        if not isinstance(value, Sequence) or not all(type(each) is int for each in value):
            raise InputError(f"{self.path}{key}={value!r}: a list of whole numbers is needed")
        return tuple(value)

    def one_of(self, key: str, valid: Sequence[str]) -> str:
        """Return one of a few names."""
        value = self.value(key)
        if value not in valid:
            raise InputError(f"{self.path}{key}={value!r}: valid are {', '.join(valid)}")
        return str(value)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise InputError(f"{self.path}{key}={value!r}: true or false is needed")
        return value

    def integer(self, key: str, *, at_least: int) -> int:
        """Return a whole number."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise InputError(
                f"{self.path}{key}={value!r}: a whole number of at least {at_least} is needed"
            )
        return value

    def optional_integer(self, key: str, *, at_least: int) -> int | None:
        """Return a whole number, or None for null."""
        return None if self._mapping.get(key) is None else self.integer(key, at_least=at_least)

    def number(
        self,
        key: str,
        *,
        above: float = -math.inf,
        least: float = -math.inf,
        below: float = math.inf,
    ) -> float:
        """Return a finite number within bounds."""
        value = self.value(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not (above < value < below and value >= least):
            bounds = [f"above {above:g}"] if above > -math.inf else []
            bounds += [f"of at least {least:g}"] if least > -math.inf else []
            bounds += [f"below {below:g}"] if below < math.inf else []
            raise InputError(
                f"{self.path}{key}={value!r}: a number {' and '.join(bounds)} is needed"
            )
        return float(value)

    def optional_number(self, key: str, **bounds: float) -> float | None:
        """Return a number within `number`'s bounds, or None for null."""
        return None if self._mapping.get(key) is None else self.number(key, **bounds)
