"""A sweep has the runs that Hydra itself would compose, but composes them faster."""

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from lowrank_study.config.composition import CONF_FOLDER, composer_of, plain
from lowrank_study.config.grids import configs_of_job, planned_configs
from lowrank_study.config.run import RunConfig, read_config
from lowrank_study.errors import InputError
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.methods.head import HeadOnly
from lowrank_study.methods.lora import Lora


def composed(*overrides: str) -> list[RunConfig]:
    return configs_of_job(composer_of("config"), overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full", "method.rank=4", "seed=1"],
        ["method=lora", "method.target=[query,key]", "method.alpha=2r", "task.test_size=200"],
        ["experiment=rank_sweep", "method=lora", "method.learning_rate=1e-3", "model.dropout=0.1"],
        ["method=peft", "method.peft_type=LOHA", "method.options.r=2"],
        ["task=glue_rte", "model=gpt2", "trainer=three_epochs", "trainer.epochs=2"],
    ],
)
def test_a_job_is_composed_as_by_hydra(overrides: list[str]) -> None:
    [ours] = composed(*overrides)
    written = [o.replace("method.options", "+method.options") for o in overrides]
    with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
        assert ours == read_config(plain(hydra_compose("config", written)))


def test_the_rank_sweep_is_45_runs() -> None:
    specs = [config.spec for config in planned_configs("experiment=rank_sweep")]
    assert len(specs) == 63
    assert len({spec.run_id for spec in specs}) == 45
    assert {spec.seed for spec in specs} == {0, 1, 2}


def test_cases_describe_runs_that_are_not_one_grid() -> None:
    cases = "cases=[{method.target: query, method.rank: 8}, {method.target: mlp, method.rank: 2}]"
    found = [config.spec for config in composed("seed=3", cases)]
    plain_ones = [
        composed("seed=3", f"method.target={target}", f"method.rank={rank}")[0].spec
        for target, rank in (("query", 8), ("mlp", 2))
    ]
    assert [spec.run_id for spec in found] == [spec.run_id for spec in plain_ones]


def test_a_case_is_a_grid_and_may_choose_files() -> None:
    cases = (
        "cases=[{method: 'full,head'}, {method: lora, method.rank: '1,2', method.target: [key]}]"
    )
    full, head, *loras = [c.spec.method for c in composed("seed=3", cases)]
    assert isinstance(full, FullFineTuning)
    assert isinstance(head, HeadOnly)
    assert [(lora.rank, lora.target) for lora in loras if isinstance(lora, Lora)] == [
        (1, ("key",)),
        (2, ("key",)),
    ]


def test_a_setting_of_the_cases_cannot_be_overridden() -> None:
    cases = "cases=[{method.rank: '1,2'}]"
    with pytest.raises(InputError, match=r"method\.rank: the experiment's cases set it"):
        composed("method.rank=8", cases)


def test_an_unknown_setting_in_a_case_is_refused() -> None:
    with pytest.raises(InputError, match=r"did you mean method\.rank=3\?"):
        composed("cases=[{method.rnak: 3}]")


def test_a_case_may_have_non_ascii_letters() -> None:
    [config] = composed("cases=[{task.labels: ['größe', 'maß']}]")
    assert config.spec.task.labels == ("größe", "maß")


@pytest.mark.parametrize("value", ["interval(1,2)", "glob(*)"])
def test_a_grid_needs_values_one_by_one(value: str) -> None:
    with pytest.raises(InputError, match=r"method\.rank=1,2,4"):
        planned_configs(f"method.rank={value}", is_grid=True)


def test_settings_of_the_sweep_have_one_value() -> None:
    with pytest.raises(InputError, match=r"workers=1,2: a sweep has one value"):
        planned_configs("workers=1,2", "trainer.precision=fp32", is_grid=True)


def test_one_name_has_one_source() -> None:
    cases = "cases=[{task.source: a/b}, {task.source: c/d}]"
    given = ["task=hub", "task.name=mine", cases, "trainer.precision=fp32"]
    with pytest.raises(InputError, match=r"a/b and c/d are both called task\.name=mine"):
        planned_configs(*given)


def test_the_flagships_first_task_is_144_runs() -> None:
    found = planned_configs("experiment=flagship_rotten_tomatoes")
    assert len(found) == len({config.spec.run_id for config in found}) == 6 * (2 + 2 * 8 + 2 * 3)
