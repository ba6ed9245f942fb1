"""Multiple choice: log-likelihoods and accuracies are those of lm-evaluation-harness."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowrank_study.answers.paired_scores import paired_with_full
from lowrank_study.answers.tables import runs_table
from lowrank_study.config.run import compose
from lowrank_study.data.questions import tokenise_questions
from lowrank_study.data.splits import load_splits
from lowrank_study.errors import InputError
from lowrank_study.loaded import model_folder
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.sweeps.sweep import sweep
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.multiple_choice import MultipleChoice
from lowrank_study.training.evaluate import predict
from lowrank_study.training.fit import Job, fit, fit_together
from lowrank_study.training.member import FitResult
from lowrank_study.training.models import load_model
from lowrank_study.training.tracking import Tracker
from lowrank_study.training.unpadded import unpad, unpadded_scores

Overrides = Callable[..., list[str]]

MELTING = [
    ("What is ice made of?", ["water", "sand and stones", "wood", "iron"], 0),
    ("Which animal can fly?", ["a horse", "a sparrow", "a shark"], 1),
    ("How many days are there in a week?", ["twelve", "seven"], 1),
    ("What colour is a ripe banana?", ["blue", "deep violet", "black", "yellow", "grün"], 3),
    ("Which planet do we live on?", ["Mars", "Venus", "the Earth", "Jupiter"], 2),
    ("What do bees make?", ["honey", "milk", "a very long story about paper"], 0),
]
"""Questions, options of different lengths, and the place of the right one."""


def written(path: Path, questions: list[tuple[str, list[str], int]]) -> Path:
    records = [
        {"question": text, "options": options, "answer": right}
        for text, options, right in questions
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def word_questions(count: int) -> list[tuple[str, list[str], int]]:
    """Questions of which the right option repeats the first word.

    It is one of two to four options, at a random place. Each option has its word once or twice.
    """
    generator, found = random.Random(0), []
    for number in range(count):
        words = generator.sample(range(40), generator.randint(2, 4))
        right = generator.randrange(len(words))
        options = [" ".join([f"word{word}"] * generator.randint(1, 2)) for word in words]
        prompt = f"word{words[right]} word{number % 40} word{number // 40}"
        found.append((prompt, options, right))
    return found


def overrides(causal: Overrides, path: Path, *more: str) -> list[str]:
    return [
        *causal(),
        *("task=multiple_choice", f"task.source={path}", "task.prompt_template='{prompt}'"),
        *("task.validation_size=30", "task.test_size=50", "task.max_length=512", *more),
    ]


def harness(
    model: Any, tokenizer: Any, context: str, choices: list[str], gold: int
) -> tuple[list[float], float, float]:
    """Return the log-likelihoods of the choices, `acc` and `acc_bytes`.

    The formulas of lm-evaluation-harness, with plain calls of transformers: `_encode_pair`
    (`lm_eval/api/model.py` at 04e7442), `_loglikelihood_tokens` (`lm_eval/models/huggingface.py`),
    and `process_results` (`lm_eval/api/task.py`) with the default `target_delimiter`, a space,
    and `softmax_dtype=float32`. `acc_norm` divides by characters, and `acc_bytes` by UTF-8 bytes.
    """
    found = []
    for choice in choices:
        before, continuation = context, f" {choice}"
        spaces = len(before) - len(before.rstrip())
        if spaces > 0:
            continuation = before[-spaces:] + continuation
            before = before[:-spaces]
        whole = tokenizer.encode(before + continuation)
        context_ids = tokenizer.encode(before)
        continuation_ids = whole[len(context_ids) :]
        read = torch.tensor([(context_ids + continuation_ids)[:-1]])
        with torch.no_grad():
            # In fp32, as in the harness, its sum over 49,152 words is off by 4e-6 on AVX2.
            logits = torch.log_softmax(model(read).logits, dim=-1, dtype=torch.float64)
        logits = logits[:, -len(continuation_ids) :]
        of_tokens = logits.gather(2, torch.tensor([continuation_ids])[..., None])
        found.append(float(of_tokens.sum()))
    lengths = np.array([float(len(choice.encode("utf-8"))) for choice in choices])
    acc = 1.0 if np.argmax(found) == gold else 0.0
    acc_bytes = 1.0 if np.argmax(found / lengths) == gold else 0.0
    return found, acc, acc_bytes


def largest_difference_from_the_harness(
    predictions: Predictions | None, model: Any, tokenizer: Any, task: Any
) -> float:
    """Check predictions of the test split, and return the largest relative difference.

    Accuracies must be equal, and so the difference is that of log-likelihoods.
    """
    assert predictions is not None
    columns, scores, worst = predictions.columns, [], 0.0
    for number, row in enumerate(task.split_rows().frames["test"].to_dict("records")):
        context = task.prompt_template.replace("{prompt}", row["text"])
        expected, *accuracies = harness(model, tokenizer, context, row["options"], row["right"])
        scores.append(accuracies)
        found = [columns[f"log_likelihood_{n}"][number] for n in range(len(expected))]
        worst = max(worst, float(np.max(np.abs(np.divide(found, expected) - 1))))
        assert columns["options"][number] == len(expected)
        assert columns["label"][number] == row["right"]
        assert columns["loss"][number] == -found[row["right"]]
    metrics, mean = predictions.metrics(), np.mean(scores, axis=0)
    assert metrics["accuracy"] == pytest.approx(mean[0], rel=1e-12)
    assert metrics["accuracy_per_byte"] == pytest.approx(mean[1], rel=1e-12)
    return worst


def test_a_trained_model_scores_as_in_the_harness(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.jsonl", word_questions(160))
    spec = compose(*overrides(causal_overrides, path, "method=full"))
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").double().eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder(spec.model))
    assert largest_difference_from_the_harness(result.test, model, tokenizer, spec.task) < 1e-6
    test = result.record["test"]
    assert 0 < test["accuracy"] < 1
    assert test["accuracy"] != test["accuracy_per_byte"]


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
def test_smollm2_scores_as_in_the_harness(tmp_path: Path) -> None:
    """Up to the logits in fp64: in fp32, rounding would change both by more than 1e-6."""
    for name in ("train.jsonl", "test.jsonl"):
        written(tmp_path / name, MELTING)
    spec = compose(
        *("task=multiple_choice", f"task.source={tmp_path}", "model=smollm2"),
        *("task.train=train.jsonl", "task.validation=test.jsonl", "task.test=test.jsonl"),
    )
    folder = model_folder(spec.model)
    stock = load_model(MultipleChoice, folder, number_of_labels=0, dropout=0.0).double().eval()
    ours = copy.deepcopy(stock)
    unpad(ours)
    cpu = torch.device("cpu")
    found = predict(
        spec.task,
        lambda batch: unpadded_scores(ours, batch, cpu)[0],
        load_splits(spec.task, folder).test,
        device=cpu,
        precision="fp32",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert largest_difference_from_the_harness(found, stock, tokenizer, spec.task) < 1e-6


def questions_of(*rows: tuple[str, list[str], int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["text", "options", "right"])


@pytest.fixture
def tokenizer(tiny_causal_model: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_causal_model("llama"))


def test_the_predicted_tokens_are_the_options(tokenizer: Any) -> None:
    rows = questions_of(
        ("word1 word2", ["word3", "word4 word5"], 1), ("word6", ["good", "bad", "fine"], 0)
    )
    split, account = tokenise_questions(
        tokenizer, rows, template="{prompt}", max_length=99, of="test"
    )
    assert split.labels.tolist() == [0, 0, 1, 1, 1]
    assert split.is_right.tolist() == [False, True, True, False, False]
    assert tokenizer.decode(split.ids[split.scored]) == "word3 word4 word5 good bad fine"
    assert tokenizer.decode(split.tokens(1)) == tokenizer.decode(
        tokenizer("word1 word2 word4 word5")["input_ids"]
    )
    assert split.text_bytes.tolist() == [5, 11, 4, 3, 4]
    assert split.examples == 2
    assert account.read == ("test: 2 questions, 2 to 3 options each, 6 predicted tokens",)
    trained, account = tokenise_questions(
        tokenizer, rows, template="{prompt}", max_length=99, of="train"
    )
    assert tokenizer.decode(trained.ids[trained.scored]) == "word4 word5 good"
    assert trained.is_right.all()
    assert account.read == ("train: 2 questions, the right option of each, 3 predicted tokens",)


def test_white_space_before_an_option_is_predicted_with_it() -> None:
    from tests.tasks.test_instruction import BYTES

    rows = questions_of(("Which?", ["4.", " no"], 0))
    for template, texts in (
        ("{prompt}", [" 4.", "  no"]),
        ("{prompt} ", [" 4.", "  no"]),
        ("{prompt}\n\n", ["\n\n4.", "\n\n no"]),
    ):
        split, _ = tokenise_questions(BYTES, rows, template=template, max_length=99, of="test")
        found = [
            BYTES.decode(split.tokens(n)[split.scored[split.offsets[n] : split.offsets[n + 1]]])
            for n in range(2)
        ]
        assert found == texts
        assert split.text_bytes.tolist() == [2, 3]


def test_a_long_prompt_loses_its_beginning(tokenizer: Any) -> None:
    rows = questions_of(("word1 word2 word3", ["word4", "word5 word6"], 0))
    split, account = tokenise_questions(
        tokenizer, rows, template="{prompt}", max_length=4, of="test"
    )
    assert [tokenizer.decode(split.tokens(n)) for n in range(2)] == [
        "word1 word2 word3 word4",
        "word2 word3 word5 word6",
    ]
    [warning] = account.warnings
    assert "have more than task.max_length=4 tokens" in warning
    with pytest.raises(InputError, match=r"max_length=2 leaves no room .* option of 2 tokens"):
        tokenise_questions(tokenizer, rows, template="{prompt}", max_length=2, of="test")


def test_choices_chance_and_ties(tokenizer: Any) -> None:
    rows = questions_of(
        ("word1", ["word2", "word3 word4"], 1), ("word5", ["good", "bad", "fine", "poor"], 3)
    )
    split, _ = tokenise_questions(tokenizer, rows, template="{prompt}", max_length=9, of="test")
    losses = np.array([2.0, 3.0, 5.0, 4.0, 4.0, 4.5])
    columns = MultipleChoice.rows(split, {"loss": losses})
    assert columns["predicted"].tolist() == [0, 1], "the first of equal ones, as in numpy"
    assert columns["predicted_per_byte"].tolist() == [1, 2]
    assert columns["loss"].tolist() == [3.0, 4.5]
    assert columns["log_likelihood_1"].tolist() == [-3.0, -4.0]
    assert np.isnan(columns["log_likelihood_2"][0])
    metrics = Predictions(task=MultipleChoice, columns=columns).metrics()
    assert (metrics["accuracy"], metrics["accuracy_per_byte"]) == (0.0, 0.5)
    assert metrics["chance_accuracy"] == (1 / 2 + 1 / 4) / 2
    assert metrics["nats_per_token"] == metrics["loss"] == 7.5 / 3
    table = pd.DataFrame(columns)
    assert MultipleChoice.scores(table).mean() == metrics["accuracy"]
    assert MultipleChoice.baseline_scores(table).tolist() == [0.5, 0.25]
    perfect = table.assign(predicted=table["label"])
    assert MultipleChoice.scores(perfect).tolist() == [1.0, 1.0]


def test_a_model_learns_to_choose_and_tables_follow(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.jsonl", word_questions(480))
    spec = compose(*overrides(causal_overrides, path, "trainer.epochs=20", "method.rank=2"))
    full = replace(spec, method=FullFineTuning(learning_rate=1e-2))
    runs = sweep(
        [replace(each, seed=seed) for each in (full, spec) for seed in range(2)],
        name="s",
        results=tmp_path,
        launcher="inline",
    )
    test = runs[0].record["test"]
    assert test["chance_accuracy"] < 0.5
    assert test["accuracy"] > 0.8
    assert "accuracy" not in runs[0].record["train"]
    assert runs[0].record["examples"] == {"train": 400, "validation": 30, "test": 50}
    table = runs_table(runs)
    assert table["test_score"].tolist() == [run.record["test"]["accuracy"] for run in runs]
    assert table["chance"].tolist() == pytest.approx([test["chance_accuracy"]] * 4)
    assert table["train_score"].isna().all()
    [pairs] = paired_with_full(runs)
    assert pairs.chance == pytest.approx(test["chance_accuracy"])
    assert pairs.adapter_SE.shape == (2, 50)


def test_packed_runs_equal_runs_alone(causal_overrides: Overrides, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", word_questions(160))
    specs = [compose(*overrides(causal_overrides, path, f"method.rank={rank}")) for rank in (2, 4)]
    jobs = [
        Job(spec=spec, checkpoint_folder=tmp_path / str(n), tracker=Tracker())
        for n, spec in enumerate(specs)
    ]
    packed = fit_together(jobs, device="cpu")
    for number, spec in enumerate(specs):
        alone = fit(spec, checkpoint_folder=tmp_path / f"alone{number}", tracker=Tracker())
        together = packed[number]
        assert isinstance(together, FitResult)
        assert together.test is not None
        assert alone.test is not None
        for place in range(4):
            name = f"log_likelihood_{place}"
            np.testing.assert_allclose(
                together.test.columns[name], alone.test.columns[name], rtol=0, atol=1e-4
            )


def test_test_sets_are_scored_apart(causal_overrides: Overrides, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", word_questions(160))
    frame = pd.read_json(path, lines=True)
    frame["set"] = ["near", "far"] * 80
    frame.to_json(path, orient="records", lines=True)
    spec = compose(*overrides(causal_overrides, path, "task.test_set_column=set"))
    splits = load_splits(spec.task, model_folder(spec.model))
    assert splits.test.examples == 50 == sum(splits.test_sets.values())
    assert load_splits(spec.task, model_folder(spec.model)).sha256 == splits.sha256
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    sets = result.record["test_sets"]
    sizes = splits.test_sets
    total = sum(sets[name]["accuracy"] * size for name, size in sizes.items())
    assert total / 50 == pytest.approx(result.record["test"]["accuracy"])


def rows_of(causal: Overrides, path: Path, *more: str) -> Any:
    sizes = ("task.validation_size=5", "task.test_size=5")
    return compose(*overrides(causal, path, *more, *sizes)).task.split_rows()


def test_layouts_and_formats_give_the_same_questions(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    questions = word_questions(40)
    expected = rows_of(causal_overrides, written(tmp_path / "a.jsonl", questions)).frames["test"]
    assert len(expected) == 5
    lists = pd.read_json(tmp_path / "a.jsonl", lines=True)
    lists.to_parquet(tmp_path / "a.parquet")
    wide = pd.DataFrame(
        [dict(zip("abcd", options, strict=False)) for _, options, _ in questions]
    ).assign(question=lists["question"], key=["ABCD"[right] for *_, right in questions])
    wide.to_csv(tmp_path / "wide.csv", index=False)
    as_json = lists.assign(
        options=lists["options"].map(json.dumps),
        answer=[options[right] for _, options, right in questions],
        one=lists["answer"] + 1.0,
    )
    as_json.to_csv(tmp_path / "lists.csv", index=False)
    letters = ("task.option_columns=[a,b,c,d]", "task.answer_column=key")
    for name, more in (
        ("a.parquet", ()),
        ("wide.csv", (*letters, "task.answer_format=letter")),
        ("lists.csv", ("task.answer_format=text",)),
        ("lists.csv", ("task.answer_column=one", "task.answer_format=number")),
    ):
        found = rows_of(causal_overrides, tmp_path / name, *more).frames["test"]
        assert found["options"].tolist() == expected["options"].tolist()
        assert found["right"].tolist() == expected["right"].tolist()


@pytest.mark.parametrize(
    ("options", "answer", "more", "message"),
    [
        (["a", "b"], 2, (), "row 1: 'answer' is '2', but task.answer_format=index allows 0, 1;"),
        (["a", "b"], "C", ("task.answer_format=letter",), "A, B; other formats are index, numb"),
        (["a", "b"], "c", ("task.answer_format=text",), "'c', but .*=text allows a, b; other"),
        (["a"], 0, (), "row 1: a question needs two or more options, but this one has 1"),
        ([], 0, (), "but this one has 0: add options, or remove the row"),
        (["a", "b", "a "], 0, (), "row 1: option 3 repeats option 1, 'a': remove one"),
        (["a", " "], 0, (), "row 1: option 2 is empty: give its text, or remove it"),
        (["a", None], 0, (), "row 1: option 2 is empty"),
        (["a", ["b"]], 0, (), r"row 1: column 'options' holds \['b'\], of type list"),
        ("a or b", 0, (), "row 1: column 'options' is not a list of options"),
        (["a", "b"], None, (), "has no rows: .*'answer' is empty"),
        (["a", "b"], 0, ("task.option_columns=options2",), "task.option_columns='options2' is not"),
        (["a", "b"], 0, ("task.option_columns=answer",), "all different from task.prompt_column"),
        (["a", "b"], 0, ("task.option_columns=[]",), "give one column with lists, or one column"),
        (["a", "b"], 0, ("task.answer_format=roman",), "answer_format='roman'.*index, number"),
        (["a", "b"], 0, ("task.prompt_template=x",), r"before an option, with \{prompt\} once"),
    ],
)
def test_unusable_questions_are_refused_in_one_line(
    options: Any,
    answer: Any,
    more: tuple[str, ...],
    message: str,
    causal_overrides: Overrides,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "q", "options": options, "answer": answer}) + "\n")
    with pytest.raises(InputError, match=message) as refused:
        rows_of(causal_overrides, path, *more)
    assert "\n" not in str(refused.value)


def test_an_option_that_is_missing_between_others_is_refused(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,a,b,c,answer\nq,x,,z,0\n")
    with pytest.raises(InputError, match=r"a\.csv row 1: option 2 is empty"):
        rows_of(causal_overrides, path, "task.option_columns=[a,b,c]")
