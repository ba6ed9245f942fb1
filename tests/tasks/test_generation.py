"""Generation: what settings and rows are refused, and how answers are scored."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.loaded import splits_of
from lowrank_study.spec import RunSpec, from_mapping, to_mapping
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.generation import Generation
from lowrank_study.tasks.scoring import score, scorer_named

Overrides = Callable[..., list[str]]


def spec_of(
    causal_overrides: Overrides, path: Path, *more: str, responses: Sequence[str] = ("word2 word3",)
) -> RunSpec:
    """Return a run on prompts and responses."""
    rows = [
        {"prompt": f"word{n} word{n + 1}", "response": responses[n % len(responses)]}
        for n in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = [text for text in causal_overrides() if not text.startswith("task")]
    return compose(
        *kept,
        "task=generation",
        f"task.source={path}",
        "task.prompt_template='{prompt} good '",
        "task.validation_size=4",
        "task.test_size=8",
        "task.max_length=32",
        "task.max_new_tokens=8",
        *more,
    )


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("So 3 + 4 = 7.\n#### 7", "#### 7", 1),
        ("#### 1,234.50", "#### 1234.5", 1),
        ("#### 0.125", "#### 125", 0),
        ("#### 18\n2 more", "#### 18", 1),
        ("#### 12 345", "#### 12345", 1),
        ("#### 12 apples", "#### 12", 1),
        ("#### -3", "#### 3", 0),
        ("7", "#### 7", 0),
        ("####", "#### 7", 0),
    ],
)
def test_final_numbers_are_compared(response: str, reference: str, expected: float) -> None:
    assert score("final_number", response, reference) == expected


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [(" a\n b ", "a b", 1), ("a b", "ab", 0), ("A", "a", 0), ("", " ", 1)],
)
def test_texts_match_up_to_white_space(response: str, reference: str, expected: float) -> None:
    assert score("exact_match", response, reference) == expected


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("The cat sat.", "a cat sat", 1),
        ("a red house", "the red car", 0.5),
        ("red red", "red", 2 / 3),
        ("blue", "red", 0),
        ("", "red", 0),
        ("the", "!", 1),
    ],
)
def test_f1_is_that_of_squad(response: str, reference: str, expected: float) -> None:
    assert score("f1", response, reference) == pytest.approx(expected)


def test_a_function_of_the_working_folder_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_scores.py").write_text(
        "def shorter(response, reference):\n    return len(response) < len(reference)\n"
        "def text(response, reference):\n    return 'good'\n"
        "def nan(response, reference):\n    return float('nan')\n"
        "def fails(response, reference):\n    return 1 / len(response)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert score("own_scores:shorter", "a", "bb") == 1.0
    for name, reason in (
        ("text", "returned 'good' for the answer ''"),
        ("nan", "returned nan"),
        ("fails", "raises ZeroDivisionError"),
        ("number", "is a int"),
        ("absent", "can't be imported"),
    ):
        with pytest.raises(InputError, match=reason):
            score(f"own_scores:{name}", "", "b")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("task.scorer=bleu", "valid are final_number, exact_match, f1, or a function"),
        ("task.scorer=no_such_module:f", "ModuleNotFoundError"),
        ("task.scorer=json:no_such_function", "AttributeError"),
        ("task.stop=['']", "task.stop has an empty text"),
        ("task.max_new_tokens=0", "at least 1"),
        ("task.generated_examples=0", "at least 1"),
    ],
)
def test_invalid_settings_are_refused(
    override: str, reason: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        spec_of(causal_overrides, tmp_path / "rows.jsonl", override)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("task.scorer=final_number", "has no number after ####"),
        ("task.stop=[word]", "a response of the test split contains it"),
        ("task.max_length=4", "task.max_length=4 truncates a response of the test split"),
    ],
)
def test_responses_that_cannot_be_scored_are_refused_before_training(
    override: str, reason: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    spec = spec_of(causal_overrides, tmp_path / "rows.jsonl", override)
    with pytest.raises(InputError, match=reason):
        splits_of(spec)


def test_a_stored_run_keeps_how_it_answers(causal_overrides: Overrides, tmp_path: Path) -> None:
    spec = spec_of(causal_overrides, tmp_path / "rows.jsonl", "task.stop=[word1,'\\n']")
    assert isinstance(spec.task, Generation)
    assert spec.task.stop == ("word1", "\n")
    assert from_mapping(json.loads(json.dumps(to_mapping(spec)))) == spec


@pytest.mark.parametrize(
    ("scorer", "name"),
    [
        ("final_number", "exact_match"),
        ("exact_match", "exact_match"),
        ("f1", "f1"),
        ("math:dist", "answer_score"),
    ],
)
def test_scores_are_recorded_beside_the_loss(
    scorer: str, name: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    task = spec_of(causal_overrides, tmp_path / "rows.jsonl", f"task.scorer={scorer}").task
    columns = {
        "label": np.arange(3),
        "loss": np.array([1.0, 2.0, 3.0]),
        "tokens": np.array([1, 1, 1]),
        "bytes": np.array([4, 4, 4]),
    }
    plain = Predictions(task=task, columns=columns).metrics()
    answers = {
        "answer_score": np.array([1.0, np.nan, 0.0]),
        "answer_cut_off": np.array([False, False, True]),
    }
    found = Predictions(task=task, columns={**columns, **answers}).metrics()
    assert task.metric.name == "nats_per_token"
    assert found == {**plain, name: 0.5, "answers": 2.0, "answers_cut_off": 1.0}
    assert callable(scorer_named(scorer))
