"""The benchmark of memory trains a method, and writes its estimate beside the measured peak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
def test_a_method_is_estimated_and_measured(real_cache: None, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--only", "measured", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    figures = json.loads((tmp_path / "memory.json").read_text())["measured"]["figures"]
    assert figures
    for figure in figures:
        assert "linear probe" in figure["what"]
        assert figure["value"] < 60  # the libraries' memory varies; the target is 15
