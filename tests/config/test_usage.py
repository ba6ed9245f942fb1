"""`--help` fits on one screen: purpose, examples, settings with comments, exit codes."""

from pathlib import Path

import pytest

from tests.conftest import RunCommand

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("experiments", "analysis")
    for path in (ROOT / folder).glob("*.py")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_one_screen(script: str, run_command: RunCommand) -> None:
    code, page, errors = run_command(script, "--help")
    assert (code, errors) == (0, "")
    lines = page.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert page.count(f"python {script}") == 3
    assert "Exit codes: 0 all done; 1 " in page


def test_help_lists_settings_with_value_and_meaning(run_command: RunCommand) -> None:
    _, page, _ = run_command("analysis/record.py", "-h")
    assert "  margin=auto          largest loss of test score at which a rank" in page
    assert "  record=              name of the record" in page
    _, page, _ = run_command("experiments/train.py", "--help", "method=lora")
    assert page.startswith("Low-rank adaptation: W = W0 + scaling")
    assert "method.alpha=16 " in page
    _, page, _ = run_command("experiments/train.py", "--help", "method=lora_all_linear")
    assert "method.target=all_linear" in page
    assert "a number, or a rule: 2r is twice the rank" in page  # from the file that it extends
    _, page, _ = run_command("experiments/train.py", "--help", "model=gpt2")
    assert "a folder, or a hub id" in page  # from another file of the group
    _, page, _ = run_command("experiments/train.py", "--help", "scale=paper")
    assert page.startswith("For any `experiment=paper_*`")


def test_cfg_prints_the_composed_settings(run_command: RunCommand) -> None:
    code, page, _ = run_command("experiments/train.py", "--cfg", "job", "method.rank=3")
    assert code == 0
    assert "rank: 3\n" in page
    assert "hydra" not in page
