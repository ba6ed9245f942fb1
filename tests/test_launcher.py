"""The launcher composes the jobs that Hydra itself would compose, only sooner."""

from collections.abc import Iterator
from itertools import product

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from hydra_plugins.lowrank_study_launcher import WorkersLauncher
from lowrank_study.config import CONF_FOLDER, plain, read_config


@pytest.fixture
def launcher() -> Iterator[WorkersLauncher]:
    with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
        made = WorkersLauncher()
        made._loader = GlobalHydra.instance().config_loader()
        made._config = made._loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        yield made


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full", "method.rank=4", "seed=1"],
        ["method=lora", "method.target=[query,key]", "method.alpha=2r", "task.test_size=200"],
        ["experiment=rank_sweep", "method=lora", "method.learning_rate=1e-3", "model.dropout=0.1"],
        ["method=peft", "method.peft_type=LOHA", "+method.options.r=2"],
        ["task=glue_rte", "model=gpt2", "trainer=three_epochs", "trainer.epochs=2"],
    ],
)
def test_a_job_is_composed_as_hydra_would(overrides: list[str], launcher: WorkersLauncher) -> None:
    ours = read_config(plain(launcher._job_config(overrides, {})))
    assert ours == read_config(plain(hydra_compose("config", overrides)))


def test_the_rank_sweep_is_45_runs_composed_from_three_readings(launcher: WorkersLauncher) -> None:
    ranks, methods = (1, 2, 4, 8, 16, 32, 64), ("full", "lora", "lora_all_linear")
    composed: dict[tuple[str, ...], object] = {}
    specs = [
        read_config(
            plain(
                launcher._job_config(
                    [
                        "experiment=rank_sweep",
                        f"method={method}",
                        f"method.rank={rank}",
                        f"seed={seed}",
                    ],
                    composed,
                )
            )
        ).spec
        for method, rank, seed in product(methods, ranks, (0, 1, 2))
    ]
    assert len(specs) == 63
    assert len({spec.run_id for spec in specs}) == 45
    assert len(composed) == 3


def test_an_unknown_key_is_refused(launcher: WorkersLauncher) -> None:
    with pytest.raises(Exception, match="rnk"):
        launcher._job_config(["method=lora", "method.rnk=4"], {})
