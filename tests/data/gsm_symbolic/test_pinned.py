"""The pinned templates: how many of each language are used, and what a run reads of them."""

import re
from pathlib import Path

import pandas as pd
import pytest

from lowrank_study import assets
from lowrank_study.config.run import compose
from lowrank_study.data.gsm_symbolic.numbers import final_number
from lowrank_study.data.gsm_symbolic.problems import generated, usable_templates
from lowrank_study.errors import InputError
from lowrank_study.spec import GsmSymbolic, WheelMember, from_mapping, to_mapping

DOCS = Path(__file__).parents[3] / "docs" / "data_and_models.md"
FEW = ["task.variants=2", "task.validation_variants=1", "task.test_variants=1"]


def source_of(*overrides: str) -> GsmSymbolic:
    source = compose("task=gsm_symbolic", "model=smollm2", *overrides).task.source
    assert isinstance(source, GsmSymbolic)
    return source


def documented() -> dict[str, int]:
    _, _, table = DOCS.read_text().partition("<!-- languages:")
    table = table.partition("\n\n")[0]
    return {code: int(count or 100) for code, count in re.findall(r"`(\w+)` ?(\d*)", table)}


def test_every_setting_and_the_version_are_in_the_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    base = compose("task=gsm_symbolic", "model=smollm2")
    assert base.run_id.startswith("gsm_symbolic_eng-smollm2-")
    assert from_mapping(to_mapping(base)) == base
    changes = ["language=fra", "held_out_templates=30", "variants=8", "validation_variants=1"]
    changes += ["test_variants=2", "split_seed=1", "source.sha256=00"]
    ids = {compose("task=gsm_symbolic", "model=smollm2", f"task.{c}").run_id for c in changes}
    monkeypatch.setattr(GsmSymbolic, "VERSION", 2)
    ids |= {base.run_id, compose("task=gsm_symbolic", "model=smollm2").run_id}
    assert len(ids) == len(changes) + 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.held_out_templates=100", "task.held_out_templates=100: a number from 0 to 99"),
        ("task.variants=0", "task.variants=0: a whole number of at least 1"),
        ("task.source.generator=gsm", "task.source.generator='gsm': valid are gsm_symbolic"),
    ],
)
def test_bad_settings_are_refused(override: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        compose("task=gsm_symbolic", "model=smollm2", override)


@pytest.mark.slow
def test_an_unknown_language_is_refused_with_the_known_ones(real_cache: None) -> None:
    with pytest.raises(InputError, match=r"templates holds afr, amh, ara, .* zul$"):
        assets.fetch(source_of("task.language=xyz"))


@pytest.mark.slow
def test_english_problems(real_cache: None) -> None:
    frames = generated(source_of(*FEW)).frames
    assert {split: len(frame) for split, frame in frames.items()} == {
        "train": 150,
        "validation": 75,
        "test": 100,
    }
    every = pd.concat(frames.values())
    assert not every["answer"].str.contains("[{}]").any()
    fractions = [final_number(answer).denominator > 1 for answer in every["answer"]]
    assert set(every["template"][fractions]) <= {40}  # its stored answer is 3.5
    first = frames["train"].iloc[1]
    assert (first["question"], first["answer"].splitlines()[-1]) == FIRST


FIRST = (
    "Madison saw a 150-foot whale with 4 45-inch remoras attached to it. What percentage of the "
    "whale's body length is the combined length of the remoras?",
    "#### 10",
)
"""Generated once; a change means that GsmSymbolic.VERSION has to increase."""


@pytest.mark.slow
def test_used_templates_of_all_languages_are_those_of_the_documentation(real_cache: None) -> None:
    source = source_of()
    every = WheelMember(
        requirement=source.requirement,
        sha256=source.sha256,
        member=source.member.rpartition("/")[0],
    )
    folder = assets.fetch(every)
    counts = {
        language.name: len(usable_templates.__wrapped__(language, language.name).templates)
        for language in sorted(folder.iterdir())
    }
    assert counts == documented()
    assert counts["eng"] == 100
    assert sum(counts.values()) == 8319
    assert len(counts) == 109
