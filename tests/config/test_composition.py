"""Unknown settings are refused with a suggestion, even with a plus."""

import pytest

from lowrank_study.config.composition import composer_of, plain
from lowrank_study.errors import InputError

COMMANDS = ("config", "report", "record", "truncate", "measure_controls", "measure_spectra")
COMMANDS += ("check_claims", "reproduce", "show_progress")


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        plain(composer_of(name).config(overrides))
    message = str(refused.value)
    assert "\n" not in message
    assert "use +" not in message
    assert "hydra.cc" not in message
    return message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=0.1", "method.learning_rate=0.1"),
        ("epochs=3", "trainer.epochs=3"),
        ("lora_alpha=64", "method.alpha=64"),
        ("method.lora_alpha=64", "method.alpha=64"),
        ("+method.lora_alpha=64", "method.alpha=64"),
        ("++lr=0.1", "method.learning_rate=0.1"),
        ("method.rnk=4", "method.rank=4"),
        ("rank=4", "method.rank=4"),
        ("trainer.lr=1", "method.learning_rate=1"),
        ("batch-size=8", "trainer.batch_size=8"),
        ("sede=1", "seed=1"),
        ("resluts=x", "results=x"),
        ("method={rank: 2, rnk: 3}", "method.rank=3"),
        ("bf16=true", "trainer.precision=true"),
    ],
)
def test_the_nearest_setting_is_named(typed: str, meant: str) -> None:
    assert f"did you mean {meant}?" in refusal("config", typed)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("typed", ["zzz=1", "+zzz=1", "++zzz=1", "hydra.mode=RUN", "zz@zz=1"])
def test_every_command_refuses_what_it_does_not_know(name: str, typed: str) -> None:
    assert typed.strip("+").partition("=")[0] in refusal(name, typed)


def test_a_known_setting_needs_no_plus() -> None:
    assert "write method.rank=4" in refusal("config", "+method.rank=4")


def test_the_settings_of_another_choice_are_named() -> None:
    message = refusal("config", "method=peft", "method.peft_type=IA3", "method.rank=4")
    assert message.startswith("method.rank is not a setting of method=peft: valid are ")
    assert "add tuning=grid" in refusal("config", "tuning.rates=3")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("method=lroa", ["did you mean lora?", "full, head, "]),
        ("experiment=none", ["rank_sweep"]),
        ("tuning=null", ["~tuning"]),
        ("task=mnli", ["did you mean glue_mnli?"]),
        ("method.options.r=4", ["method.options.r is not a setting of method=lora"]),
        ("trainer.max_steps=5", ["valid are", "trainer.epochs"]),
        ("~method.rank", ["can't be left out", "tuning"]),
        ("~seed", ["can't be left out"]),
        ("~task", ["can't be left out", "tuning, stopping, experiment, scale"]),
        ("method.rank=[4", ["bracket"]),
        ("method.rank=4)", ["bracket"]),
        ("device=${oc.env:NO_SUCH_VARIABLE}", ["device", "NO_SUCH_VARIABLE"]),
        ("task=file", ["task.source has no value"]),
        ("=3", ["KEY=VALUE"]),
        ("method.rank=1,2", ["one value"]),
        ("seed.x=3", ["seed.x"]),
    ],
)
def test_composition_errors_are_one_line(typed: str, words: list[str]) -> None:
    message = refusal("config", typed)
    for word in words:
        assert word in message


def test_a_setting_may_have_the_name_of_a_folder_of_conf() -> None:
    assert plain(composer_of("measure_spectra").config(["method=svd"]))["method"] == "svd"


def test_mappings_with_keys_chosen_by_the_user_are_open() -> None:
    options = "method.options={feedforward_modules: []}"
    config = plain(composer_of("config").config(["method=peft", "method.peft_type=IA3", options]))
    assert config["method"]["options"] == {"feedforward_modules": []}
    config = plain(
        composer_of("config").config(["model.roles.own='*.own'", "model.targets.t=[own]"])
    )
    assert config["model"]["roles"]["own"] == "*.own"
    assert config["model"]["targets"]["t"] == ["own"]


def test_letters_of_any_language_need_no_quotes() -> None:
    config = plain(
        composer_of("config").config(["task.text_columns=Größe", "question=Wozu, (ja)?"])
    )
    assert config["task"]["text_columns"] == "Größe"
    assert config["question"] == "Wozu, (ja)?"


def test_reports_share_their_settings_with_training() -> None:
    shared = plain(composer_of("report").config([]))
    config = plain(composer_of("config").config([]))
    assert {key: config[key] for key in shared} == shared
