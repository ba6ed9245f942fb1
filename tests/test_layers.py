"""The arrows of the house: imports point down only."""

import ast
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
    "config": {"errors", "machine", "spec", "assets"},
    "runs": {"errors", "files", "hashing", "left_out", "machine", "spec"},
    "checkpoints": {"errors", "files", "left_out"},
    "tasks": BASE | {"data"},
    "spectra": BASE,
    "data": BASE,
    "methods": BASE,
    "training": BASE | {"data", "methods", "tasks"},
    "sweeps": BASE | {"data", "methods", "tasks", "training", "spectra"},
    "answers": BASE | {"data", "methods", "tasks", "training", "spectra", "sweeps"},
    "measurement": BASE | {"spectra"},
    "papers": BASE | {"data", "methods", "tasks", "training", "spectra", "sweeps", "answers"},
    "claims": BASE
    | {"data", "methods", "tasks", "training", "spectra", "sweeps", "answers", "papers"},
    "reporting": BASE
    | {"data", "methods", "tasks", "training", "spectra", "sweeps", "answers"}
    | {"measurement", "papers", "claims"},
    "command": {"errors", "files", "config"},
    "__init__": BASE | {"spectra", "sweeps", "answers", "reporting"},
}


def imported(file: Path) -> set[str]:
    """Return the parts of the project a file imports, also inside functions."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
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


def test_spec_needs_the_standard_library_only() -> None:
    import sys

    tree = ast.parse((PACKAGE / "spec.py").read_text())
    roots = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert roots <= sys.stdlib_module_names


def test_mains_are_thin() -> None:
    mains = [*PACKAGE.parent.glob("experiments/*.py"), *PACKAGE.parent.glob("analysis/*.py")]
    assert len(mains) >= 2
    for main in mains:
        assert len(main.read_text().splitlines()) <= 40, f"{main.name} is not thin"
