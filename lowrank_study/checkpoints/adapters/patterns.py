"""Match module names against the patterns of an adapter_config.json, in bounded time.

A hostile pattern could take years to match, so its steps are bounded before it runs.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lowrank_study.checkpoints.formats import shown
from lowrank_study.errors import InputError

_MAX_STEPS = 5e6
_MAX_SECONDS = 1.0
_SLOW = "could take too long to match; write the module names out in it"


def match_patterns(
    patterns: Mapping[str, Any], default: float, modules: Sequence[str], where: str
) -> tuple[dict[str, float], list[str]]:
    """Return the value of the first pattern that matches each module, as PEFT does.

    The second part lists the modules that further patterns match with another value.
    """
    compiled: list[_Pattern] = []
    deadline = time.thread_time() + _MAX_SECONDS
    for key, value in patterns.items():
        compiled.append(_Pattern.compile(key, float(value), where))
        if time.thread_time() > deadline:
            raise InputError(f"{where}: {shown(key)} {_SLOW}")
    values: dict[str, float] = {}
    unclear: list[str] = []
    for module in modules:
        matching: list[float] = []
        for pattern in compiled:
            if not module.endswith(pattern.tail):
                continue
            if pattern.steps(module) > _MAX_STEPS or time.thread_time() > deadline:
                raise InputError(f"{where}: {shown(pattern.key)} {_SLOW}")
            if pattern.regex.match(module):
                matching.append(pattern.value)
        values[module] = matching[0] if matching else default
        if len(set(matching)) > 1:
            unclear.append(module)
    return values, unclear


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """A pattern of a config, and what bounds the time it takes to match."""

    key: str
    regex: re.Pattern[str]
    repeats: int
    """Parts of variable length: each can multiply the steps by the name's length."""
    branches: int
    """Product of the numbers of alternatives."""
    tail: str
    """The end of every match, to skip most names quickly."""
    value: float

    @classmethod
    def compile(cls, key: str, value: float, where: str) -> Self:
        r"""Compile as PEFT does, `(.*\.)?(key)$`; nested repeats and lookarounds are refused."""
        bare = key.replace("(?:", "(")
        if len(key) > 500 or re.search(r"\)[*+{?]|\(\?|\\[1-9]", bare):
            raise InputError(f"{where}: the pattern {shown(key)} {_SLOW}")
        try:
            regex = re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError, RecursionError):
            raise InputError(
                f"{where}: {shown(key)} is not a valid pattern; correct it in the config"
            ) from None
        return cls(
            key=key,
            regex=regex,
            repeats=len(re.findall(r"[*+?]|\{\d*,\d*\}", bare)),
            branches=math.prod(part.count("|") + 1 for part in re.split(r"[()]", bare)),
            tail="" if re.search(r"[|\\]", key) else re.findall(r"\w*$", key)[0],
            value=value,
        )

    def steps(self, name: str) -> float:
        """Return a bound on the steps of matching `name`."""
        return self.branches * float(max(2, len(name))) ** min(self.repeats + 1, 20)
