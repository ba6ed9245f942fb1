"""Optional C code for loops that NumPy and PyTorch lack, compiled on first use.

    code = native.library("tridiagonal.c")
    if code is None:
        ...  # the same in NumPy or PyTorch, slower

The sources are in this folder; each may include the headers. `cc` compiles them for this machine's
processor into the cache folder. A library's name holds a hash of source, flags and processor, so
that it is never stale, and a hash of its content, so that a damaged one is compiled again. Without
a compiler, or with LOWRANK_STUDY_NATIVE=0, there is no library. Calls through `ctypes` release the
GIL.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from importlib import resources
from pathlib import Path

from lowrank_study.assets import cache_folder
from lowrank_study.hashing import find_named, keep_named
from lowrank_study.machine import processor

FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-shared", "-fPIC")
TARGETS = (("-march=native",), ())
"""Flags for the processor, tried in turn, since not every compiler knows the first."""
LIBRARIES = ("-lm", "-lpthread")
HEADERS = ("threads.h", "vectors.h")
COMPILE_SECONDS = 120

_log = logging.getLogger(__name__)


wanted = os.environ.get("LOWRANK_STUDY_NATIVE") != "0"
"""Whether native code and libraries replace PyTorch's plain path. It is read in every step."""


_found: dict[str, bool] = {}
"""Each source that was asked for → whether there is a library."""


def library(source: str) -> ctypes.CDLL | None:
    """Return the compiled library of a source in this folder; None if it can't be compiled.

    If there is a compiler, the reason is logged once.
    """
    return _load(source) if wanted else None


def in_words(sources: Collection[str]) -> str:
    """Return whose code this process has used for what some sources compute.

    It is `native`, `torch` or, if only some sources can't be compiled, `native without norms.c`.
    """
    asked = {source: is_found for source, is_found in _found.items() if source in sources}
    missing = sorted(source for source, is_found in asked.items() if not is_found)
    if not wanted or len(missing) == len(asked):
        return "torch"
    return f"native without {', '.join(missing)}" if missing else "native"


@functools.cache
def _load(source: str) -> ctypes.CDLL | None:
    code = _opened(source)
    _found[source] = code is not None
    return code


def _opened(source: str) -> ctypes.CDLL | None:
    folder = cache_folder() / "native"
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    codes = {"source.c": _read(source), **{name: _read(name) for name in HEADERS}}
    parts = (*FLAGS, *TARGETS[0], *LIBRARIES, platform.platform(), *_instruction_sets())
    key = hashlib.sha256("\0".join([*codes.values(), *parts]).encode()).hexdigest()[:16]
    stem = f"{Path(source).stem}-{key}"
    try:
        made = find_named(folder, stem=stem, suffix=".so")
        return ctypes.CDLL(str(made or _compile(compiler, codes, folder, stem)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning(
            "can't compile %s, using Python's libraries, which are slower: %s",
            source,
            _reason(error),
        )
        return None


def _read(source: str) -> str:
    return resources.files(__package__).joinpath(source).read_text()


def _compile(compiler: str, codes: dict[str, str], target: Path, stem: str) -> Path:
    """Compile the library and move it to its name, so that other processes never see a part."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        source, made = Path(folder) / "source.c", Path(folder) / "made.so"
        for name, code in codes.items():
            (Path(folder) / name).write_text(code)
        for number, processor in enumerate(TARGETS, start=1):
            command = [compiler, *FLAGS, *processor, "-o", str(made), str(source), *LIBRARIES]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
            if done.returncode == 0:
                break
            if number == len(TARGETS):
                done.check_returncode()
        return keep_named(made, target, stem=stem, suffix=".so")


def _instruction_sets() -> list[str]:
    return sorted(processor()[1])


def _reason(error: Exception) -> str:
    """Return the compiler's first error, or what else happened, as one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"cc took more than {COMPILE_SECONDS} s"
    if isinstance(error, subprocess.CalledProcessError):
        complaints = [line for line in error.stderr.splitlines() if "error" in line]
        return complaints[0][:300] if complaints else f"cc ended with status {error.returncode}"
    return " ".join(str(error).split())
