"""Imports between the parts of the package point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lowrank_study"

# What each part may import of the project, besides itself; a name stands for all below it.
BOTTOM = {
    "errors",
    "files",
    "hashing",
    "left_out",
    "machine",
    "provenance",
    "native",
    "results",
    "spec",
}
BASE = BOTTOM | {"assets", "config", "runs", "checkpoints"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "left_out": {"errors"},
    "machine": set(),
    "hashing": set(),
    "provenance": {"errors", "hashing", "machine"},
    "spec": set(),
    "results": set(),
    "assets": {"errors", "hashing", "spec"},
    "native": {"assets", "hashing", "machine"},
    "config": {"errors", "machine", "spec", "assets", "methods", "tasks"},
    "runs": {"errors", "files", "hashing", "left_out", "machine", "spec"},
    "checkpoints": {"errors", "files", "left_out"},
    "tasks": BOTTOM | {"data"},
    "spectra": BOTTOM | {"checkpoints"},
    "data": BOTTOM | {"assets"},
    "methods": BOTTOM | {"checkpoints", "spectra"},
    "loaded": BASE | {"data", "tasks"},
    "training": BASE | {"loaded", "data", "methods", "tasks"},
    "sweeps": BASE | {"data", "methods", "tasks", "training", "loaded", "spectra"},
    "answers": BASE | {"data", "methods", "tasks", "training", "loaded", "spectra", "sweeps"},
    "measurement": BASE | {"spectra"},
    "papers": BASE
    | {"data", "methods", "tasks", "training", "loaded", "spectra", "sweeps", "answers"},
    "claims": BASE
    | {"data", "methods", "tasks", "training", "loaded", "spectra", "sweeps", "answers", "papers"},
    "reporting": BASE
    | {"data", "methods", "tasks", "training", "loaded", "spectra", "sweeps", "answers"}
    | {"measurement", "papers", "claims"},
    "command": {"errors", "files", "machine", "config"},
    "__init__": set(),
}


def imported(file: Path) -> set[str]:
    """Return the parts of the project a file imports at run time, also inside functions."""
    parts = set()
    tree = ast.parse(file.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides its layer"
            names = [node.module or ""]
            if node.module == "lowrank_study":
                names = [f"lowrank_study.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("lowrank_study.")}
    return parts


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_point_down(file: Path) -> None:
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in ALLOWED, f"{part} is not in the picture of the house: add its arrows"
    assert imported(file) <= ALLOWED[part] | {part}


@pytest.mark.parametrize(
    "code",
    [
        "import lowrank_study.spec",
        "from lowrank_study.methods import method_named, method_names;"
        "[method_named(name) for name in method_names()]",
        "from lowrank_study.tasks import task_named, task_names;"
        "[task_named(name) for name in task_names()]",
    ],
    ids=["spec", "methods", "tasks"],
)
def test_records_of_runs_need_the_standard_library_only(code: str) -> None:
    script = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    command = [sys.executable, "-c", script]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} <= sys.stdlib_module_names | {
        "lowrank_study"
    }


def test_mains_are_thin() -> None:
    mains = [*PACKAGE.parent.glob("experiments/*.py"), *PACKAGE.parent.glob("analysis/*.py")]
    assert len(mains) >= 2
    for main in mains:
        assert len(main.read_text().splitlines()) <= 40, f"{main.name} is not thin"
