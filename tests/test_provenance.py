"""A record identifies code that no commit identifies."""

import subprocess
from pathlib import Path

import pytest

from lowrank_study import provenance


def test_code_without_a_commit_is_identified_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "lowrank_study" / "provenance.py"
    module.parent.mkdir()
    module.write_text("one = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    first = provenance._commit()
    assert first.startswith("unknown (not a git checkout, code ")
    module.write_text("one = 2\n")
    assert provenance._commit() != first

    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    clean = provenance._commit()
    assert len(clean) == 40
    changed = set()
    for content in ("one = 3\n", "one = 4\n"):
        module.write_text(content)
        changed.add(provenance._commit())
    assert len(changed) == 2
    assert all(told.startswith(f"{clean}+changes (code ") for told in changed)
