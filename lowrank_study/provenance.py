"""Collect the provenance of a result: versions, commit and machine."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from lowrank_study.hashing import sha256_of_files
from lowrank_study.machine import processor

_LIBRARIES = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "scipy",
    "pandas",
    "peft",
    "safetensors",
)


@functools.cache
def provenance() -> dict[str, str]:
    """Return the versions of Python and libraries, the commit, and the machine's properties.

    Host names and paths are left out, because a record may be published.
    """
    facts = {"lowrank_study": importlib.metadata.version("lowrank_study")}
    facts["commit"] = _commit()
    facts["python"] = platform.python_version()
    facts |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["processor"] = _processor()
    facts["cores"] = str(os.cpu_count())
    return facts


def _commit() -> str:
    """Return the checkout's commit, with a hash of the code if the commit does not identify it.

    The commit is marked `+changes` if tracked files differ from it.
    """
    package = Path(__file__).resolve().parent
    git = ["git", "-C", str(package.parent)]
    code = [file for pattern in ("*.py", "*.[ch]") for file in package.rglob(pattern)]
    files = [str(file.relative_to(package)) for file in code]
    name = f"code {sha256_of_files(package, files)[:8]}"
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False
        )
    except (OSError, subprocess.CalledProcessError):
        return f"unknown (not a git checkout, {name})"
    return commit.stdout.strip() + (f"+changes ({name})" if changes.returncode else "")


def _processor() -> str:
    name, instruction_sets = processor()
    known = (x for x in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if x in instruction_sets)
    return f"{name} ({next(known, 'no AVX2')})"
