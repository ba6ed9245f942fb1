"""Damage files in random ways, and check how they are read.

Each property allows two outcomes: an InputError of one line, or exactly what the library reads.

    LOWRANK_STUDY_FUZZ_EXAMPLES=100000 LOWRANK_STUDY_FUZZ_RECORD=fuzz.json \\
        pytest tests/checkpoints -k damaged --hypothesis-seed=1

tries more examples and writes a record. Without a seed, the examples are new each time.
"""

import dataclasses
import functools
import gc
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft  # noqa: F401  # its import would count as the time of the first adapter
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lowrank_study.errors import InputError
from lowrank_study.provenance import provenance

EXAMPLES = int(os.environ.get("LOWRANK_STUDY_FUZZ_EXAMPLES", "0"))
SECONDS = 2.0


@dataclasses.dataclass(slots=True, kw_only=True)
class Tally:
    """The outcomes of one property's examples."""

    examples: int = 0
    """Sets of damaged files that were tried, including those that shrink a failure."""
    read: int = 0
    """Read as the library reads them."""
    refused: int = 0
    """Refused by an InputError of one line."""
    failures: int = 0
    """Another exception, another value, or too slow."""
    slowest_seconds: float = 0.0
    """Longest processor time of one example."""


TALLIES: dict[str, Tally] = {}


def fuzzed(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Run a property on examples of its strategies, and count them."""

    def decorate(check: Callable[..., None]) -> Any:
        tally = TALLIES[check.__name__] = Tally()

        @functools.wraps(check)
        def counted(**given_values: Any) -> None:
            tally.examples += 1
            try:
                check(**given_values)
            except Exception:
                tally.failures += 1
                raise

        usual = settings(
            max_examples=EXAMPLES or 120,
            derandomize=EXAMPLES == 0,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        return usual(given(**strategies)(counted))

    return decorate


START = time.time()


@pytest.fixture(autouse=True)
def record(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write the outcomes so far after each property, because a long run may be stopped."""
    made_with = provenance()
    yield
    path = os.environ.get("LOWRANK_STUDY_FUZZ_RECORD")
    if path:
        record = {
            "examples_asked_of_each": EXAMPLES or 120,
            "seed": request.config.getoption("--hypothesis-seed"),
            "seconds": round(time.time() - START),
            "processor_seconds": round(time.process_time()),
            "properties": {
                name: dataclasses.asdict(tally) for name, tally in TALLIES.items() if tally.examples
            },
            "made_with": made_with
            | {name: importlib.metadata.version(name) for name in ("gguf", "hypothesis")},
        }
        Path(path).write_text(json.dumps(record, indent=2) + "\n")


NUMBERS = [0, 1, 2, 7, 8, 31, 32, 2**16, 2**31, 2**32 - 1, 2**53, 2**62, 2**63, 2**64 - 1]
WORDS = [b"", b"0", b"-1", b"1e9", b"null", b"true", b'"', b"{", b"}", b"[", b"]", b",", b"\\u0000"]
WORDS += [b"F16", b"BF16", b"F64", b"F8_E4M3", b"I8", b"__metadata__", b"NaN", b"\xff", b"\0"]

Change = Callable[[bytearray], None]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Draw one change to the bytes of a file, more often to the header than to the data.

    Most changes keep the length, because a file of another length is refused early.
    """
    kinds = ["flip", "flip", "swap", "number", "number", "word", "word", "cut", "repeat", "grow"]
    kind = draw(st.sampled_from(kinds))
    # Hypothesis draws evenly from small ranges, but favours 0 among floats, the first byte.
    digits = st.integers(0, 99)
    parts = st.tuples(digits, digits).map(lambda two: two[0] / 100 + two[1] / 10_000)
    place = draw(parts) ** draw(st.sampled_from([1, 1, 3]))
    other = draw(parts)
    bit = draw(st.integers(0, 7))
    number = draw(st.sampled_from(NUMBERS))
    word = draw(st.sampled_from(WORDS))
    length = draw(st.integers(1, 12))
    replaced = draw(st.sampled_from([length, len(word)]))

    def change(data: bytearray) -> None:
        at, to = int(place * len(data)), int(other * len(data))
        match kind:
            case "flip" if data:
                data[at] ^= 1 << bit
            case "cut":
                del data[at:]
            case "number":
                data[at : at + 8] = number.to_bytes(8, "little")
            case "word":
                data[at : at + replaced] = word
            case "swap":
                data[at : at + length], data[to : to + length] = (
                    data[to : to + length],
                    data[at : at + length],
                )
            case "repeat":
                data[at:at] = data[to : to + length]
            case "grow":
                data += bytes(length)

    return change


def damaged(whole: bytes, made: list[Change]) -> bytes:
    data = bytearray(whole)
    for change in made:
        change(data)
    return bytes(data)


def refused_or(read: Callable[[], Any]) -> Any:
    """Return what `read` returns, or None if it was refused; nothing else may be raised."""
    tally = TALLIES[os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split()[0]]
    gc.disable()  # so that collecting hypothesis's garbage doesn't count as the reader's time
    start = time.thread_time()
    result = None
    try:
        result = read()
        tally.read += 1
    except InputError as error:
        tally.refused += 1
        message = str(error)
        assert message.isprintable(), message
        assert message.isascii(), message
        assert len(message) < 2000, message
    finally:
        seconds = time.thread_time() - start
        gc.enable()
    tally.slowest_seconds = max(tally.slowest_seconds, seconds)
    assert seconds < SECONDS
    return result


def check_as_library(path: Path, found: dict[str, np.ndarray]) -> None:
    """Compare tensors with what the safetensors library reads."""
    with safe_open(path, "pt") as library:
        for name, value in found.items():
            expected = library.get_tensor(name).double().numpy()
            with np.errstate(invalid="ignore"):  # for signalling NaN
                np.testing.assert_array_equal(value.astype(np.float64), expected)
