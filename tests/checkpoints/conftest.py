"""Files for the tests: valid checkpoints, and damaged ones byte by byte."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

WriteRaw = Callable[..., Path]


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteRaw:
    """Write a safetensors file out of any header and any bytes."""

    def write(
        header: Mapping[str, Any] | bytes,
        data: bytes = b"",
        name: str = "model.safetensors",
        length: int | None = None,
    ) -> Path:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = len(raw) if length is None else length
        path.write_bytes(size.to_bytes(8, "little") + raw + data)
        return path

    return write


@pytest.fixture
def entry() -> Callable[..., dict[str, Any]]:
    """Describe one tensor of a safetensors header."""

    def make(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}

    return make


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model folder of given tensors and config."""

    def write(
        tensors: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        folder: str = "model",
        name: str = "model.safetensors",
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        as_torch = {
            key: torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, np.ndarray)
            else value.contiguous().clone()
            for key, value in tensors.items()
        }
        save_file(as_torch, path / name, metadata={"format": "pt"})
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter folder of given tensors and settings."""

    def write(
        tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: str = "adapter"
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), path / "adapter_model.safetensors", metadata={"format": "pt"})
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def rng() -> np.random.Generator:
    """Numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def refused_in_budget() -> Callable[..., str]:
    """Open a path in a process of its own; it must be refused within 2 s and 512 MB.

    The time is the processor's, since other processes may keep this one waiting; what waits for
    ever is ended after a minute. The memory is the whole process's, interpreter included.
    """
    program = """
import sys, time
start = time.process_time()
from lowrank_study import checkpoints
from lowrank_study.errors import InputError
opener = getattr(checkpoints, sys.argv[1])
options = {"allow_pickle": True} if sys.argv[3] == "pickle" else {}
start = time.process_time() if options else start
try:
    opener(sys.argv[2], **options)
    message = ""
except InputError as error:
    message = str(error)
seconds = time.process_time() - start
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(seconds, peak / 1024, "torch" in sys.modules)
print(message)
"""

    def check(path: Path, opener: str = "open_weights", *, pickle: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, opener, str(path), "pickle" if pickle else ""],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        numbers, _, message = done.stdout.partition("\n")
        seconds, megabytes, _ = numbers.split()
        assert message.strip(), "it was not refused"
        assert message.count("\n") == 1, message
        assert float(seconds) < 2, numbers
        assert float(megabytes) < 512, numbers
        return message.strip()

    return check
