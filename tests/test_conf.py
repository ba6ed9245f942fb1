"""Every file under conf/ composes into a run."""

from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from lowrank_study.config.composition import CONF_FOLDER, plain
from lowrank_study.config.run import read_config
from lowrank_study.spec import RunSpec

NEEDS = {
    "peft": ["method.peft_type=IA3"],
    **{
        name: ["task.source=a/b"]
        for name in ("hub", "texts_hub", "instruction_hub", "multiple_choice_hub")
    },
}


def composed(*overrides: str) -> RunSpec:
    with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
        return read_config(plain(hydra_compose("config", list(overrides)))).spec


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF_FOLDER / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "choice"),
    [(g, c) for g in ("task", "model", "method", "trainer", "experiment") for c in choices(g)],
)
def test_every_file_composes(group: str, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    asks = "source: ???" in (CONF_FOLDER / group / f"{choice}.yaml").read_text()
    needed = NEEDS.get(choice, [f"{group}.source=README.md"] if asks else [])
    spec = composed(f"{group}={choice}", *needed)
    assert spec.run_id


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_names_its_sweep_and_question(experiment: str) -> None:
    with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
        config = plain(hydra_compose("config", [f"experiment={experiment}"]))
    assert config["sweep"] == experiment
    assert config["question"].endswith("?")


def test_naming_both_methods_gives_full_fine_tuning_once_a_seed() -> None:
    from itertools import product

    ranks, targets, seeds = (1, 2, 4, 8, 16, 32, 64), ("attention_qv", "all_linear"), (0, 1, 2)
    ids = {
        composed(
            "experiment=rank_sweep",
            f"method={method}",
            f"method.target={target}",
            f"method.rank={rank}",
            f"seed={seed}",
        ).run_id
        for method, target, rank, seed in product(("full", "lora"), targets, ranks[:2], seeds[:2])
    }
    assert len(ids) == 2 + 2 * 2 * 2  # full once a seed, LoRA once a target, rank and seed
