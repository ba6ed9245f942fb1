"""Every bad value is refused in one line that names it and the valid ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lowrank_study.config.run import check_used, compose, composed
from lowrank_study.errors import InputError
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import HubRepo


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.rank=0", ["method.rank=0", "at least 1"]),
        ("method.rank=-3", ["method.rank=-3", "at least 1"]),
        ("method.rank=2.5", ["method.rank=2.5", "whole number"]),
        ("method.rank=true", ["method.rank=True", "whole number"]),
        ("method.alpha=0", ["method.alpha=0", "2r"]),
        ("method.alpha=0r", ["method.alpha='0r'", "2r"]),
        ("method.alpha=two", ["method.alpha='two'", "2r"]),
        ("method.scaling=alpha", ["'alpha'", "alpha_over_rank", "alpha_over_sqrt_rank"]),
        ("method.init=zeros", ["'zeros'", "kaiming", "gaussian"]),
        ("method.dropout=1.0", ["method.dropout=1.0", "below 1"]),
        ("method.learning_rate=0", ["method.learning_rate=0", "above 0"]),
        ("method.learning_rate=nan", ["method.learning_rate=nan", "above 0"]),
        ("method.target=[]", ["method.target=[]", "attention_qv"]),
        ("trainer.precision=fp64", ["'fp64'", "fp32", "bf16"]),
        ("trainer.epochs=0", ["trainer.epochs=0", "at least 1"]),
        ("trainer.adam_betas=[0.9]", ["trainer.adam_betas", "two numbers"]),
        ("task.text_columns=[a,b,c]", ["task.text_columns", "two different ones for pairs"]),
        ("task.test_size=null", ["task.test_size", "task.test"]),
        ("task.validation_size=null", ["task.validation_size", "task.validation"]),
        ("task.source=./no/such.csv", ["./no/such.csv", "existing path"]),
        ("task.source='a b c'", ["'a b c'", "hub id"]),
        ("tracker=tensorboard", ["'tensorboard'", "none, jsonl, wandb"]),
        ("margin=0", ["margin=0", "between 0 and 1", "10%"]),
        ("margin=100%", ["margin=100%", "between 0 and 1", "10%"]),
        ("margin=[1]", ["margin=[1]", "between 0 and 1", "10%"]),
        ("seed=-1", ["seed=-1", "at least 0"]),
        ("sweep=../up", ["'../up'", "letters"]),
        ("model.targets.mlp=[mlp_sideways]", ["mlp_sideways", "query"]),
    ],
)
def test_bad_values_are_named_with_the_valid_ones(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        compose(override)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("alpha", "rank", "expected"),
    [("16", 4, 16.0), ("2r", 4, 8.0), ("r", 4, 4.0), ("0.5r", 4, 2.0)],
)
def test_alpha_is_a_number_or_a_rule(alpha: str, rank: int, expected: float) -> None:
    method = compose(f"method.alpha={alpha}", f"method.rank={rank}").method
    assert isinstance(method, Lora)
    assert method.alpha == expected


@pytest.mark.parametrize("method", ["full", "head"])
def test_adapter_settings_are_refused_without_an_adapter(method: str) -> None:
    ids = {
        compose(f"method={method}", f"method.rank={rank}", f"method.target={target}").run_id
        for rank in (1, 64)
        for target in ("attention_qv", "all_linear")
    }
    assert len(ids) == 1


def test_hub_ids_and_glue_names() -> None:
    task = compose("task=glue_mrpc").task
    assert task.source == HubRepo(repo_id="nyu-mll/glue", subset="mrpc", revision=None)
    assert task.text_columns == ("sentence1", "sentence2")
    model = compose("model=roberta", "model.source=some/model", "model.revision=v2").model
    assert model.source == HubRepo(repo_id="some/model", subset=None, revision="v2")


def test_a_linear_probe_uses_the_heads_rate() -> None:
    assert compose("method=head", "method.learning_rate=0.01").method.learning_rate == 0.01
    own = "trainer.head_learning_rate=0.05"
    assert compose("method=head", own).method.learning_rate == 0.05
    assert compose("method=lora", own).method.learning_rate != 0.05


@pytest.mark.parametrize(
    "override", ["trainer.adam_betas=[a,b]", "tuning=grid tuning.seeds=[1000,1000]"]
)
def test_invalid_values_are_refused_in_one_line(override: str) -> None:
    with pytest.raises(InputError, match=r"trainer.adam_betas|tuning.seeds"):
        compose(*override.split())


def test_run_names_fit_the_file_system() -> None:
    paths = [f"bert.encoder.layer.{n}.attention.self.query" for n in range(6)]
    run_id = compose(f"method.target=[{','.join(paths)}]").run_id
    assert len(run_id.encode()) < 200
    assert run_id != compose(f"method.target=[{','.join(paths[::-1])}]").run_id


def test_threads_may_compose_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        specs = list(pool.map(lambda rank: compose(f"method.rank={rank}"), range(1, 9)))
    assert [spec.method.rank for spec in specs if isinstance(spec.method, Lora)] == [*range(1, 9)]


def test_precision_is_that_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    here = compose("device=cpu").train.precision
    monkeypatch.setattr("lowrank_study.config.run.may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=has_bf16, **_: answer)
        assert compose("device=cuda").train.precision == precision
        assert compose("device=cpu").train.precision == here


@pytest.mark.parametrize("method", ["full", "head"])
def test_a_setting_that_a_single_run_would_ignore_is_refused(method: str) -> None:
    check_used(composed("config", f"method={method}"))
    check_used(composed("config", "method=lora", "method.dropout=0.1"))
    with pytest.raises(InputError, match=rf"method.dropout=0.1: method={method} has no dropout"):
        check_used(composed("config", f"method={method}", "method.dropout=0.1"))


def test_options_of_peft_are_a_mapping_with_a_rank_that_is_a_number() -> None:
    peft = ["method=peft", "method.peft_type=LORA"]
    with pytest.raises(InputError, match=r"method.options.r='x': a whole number"):
        compose(*peft, "method.options={r: x}")
    with pytest.raises(InputError, match=r"method.options.lora_alpha=0: a number above 0"):
        compose(*peft, "method.options={lora_alpha: 0}")
    with pytest.raises(InputError, match=r"method.options=3: a mapping"):
        compose(*peft, "method.options=3")
