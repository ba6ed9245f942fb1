"""Instruction tuning: the predicted tokens are the response, exactly, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lowrank_study.config.run import compose
from lowrank_study.data.conversations import tokenise_chats
from lowrank_study.data.splits import Account, Split
from lowrank_study.errors import InputError
from lowrank_study.training.fit import fit
from lowrank_study.training.tracking import Tracker

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNENDED = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CORPUS = ["assistant\n\nYes, 2 + 2 = 4.\n\n\n", "user\nWhat is 12 + 5?\n\nassistant\n  17 \n"] * 20


def byte_level(template: str = CHATML) -> Any:
    """A byte-level BPE whose merges cross line breaks, like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


BYTES = byte_level()


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def tokenised(
    chats: list[Any], *, tokenizer: Any = BYTES, template: str | None = None, length: int = 4096
) -> tuple[Split, Account]:
    return tokenise_chats(
        tokenizer, pd.Series(chats), template=template, max_length=length, of="train"
    )


def scored_text(split: Split, tokenizer: Any = BYTES, row: int = 0) -> str:
    place = slice(split.offsets[row], split.offsets[row + 1])
    text: str = tokenizer.decode(split.ids[place][split.scored[place]])
    return text


def prompt_text(split: Split, tokenizer: Any = BYTES) -> str:
    text: str = tokenizer.decode(split.ids[~split.scored])
    return text


NATURAL = st.text(
    st.sampled_from("ab2 +=.\n\t?éß中😀") | st.characters(codec="utf-8", exclude_characters="<"),
    min_size=1,
).filter(lambda text: text.strip())


@settings(deadline=None, derandomize=True)
@given(question=NATURAL, answer=NATURAL)
def test_the_scored_tokens_decode_to_the_response_and_its_end(question: str, answer: str) -> None:
    split, account = tokenised([turns(question, answer)])
    assert scored_text(split) == f"{answer}<|im_end|>"
    before = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(split) == before
    assert split.ids[~split.scored].tolist() == BYTES(before)["input_ids"], "as in generation"
    assert split.text_bytes.tolist() == [len(answer.encode())]
    assert account.warnings == ()


@settings(deadline=None, derandomize=True)
@given(question=NATURAL, answer=NATURAL)
def test_a_template_of_prompts_gives_the_same_response(question: str, answer: str) -> None:
    split, _ = tokenised([turns(question, answer)], template="Q: {prompt}\nA:\n")
    assert scored_text(split) == f"{answer}<|im_end|>"
    assert split.ids[~split.scored].tolist() == BYTES(f"Q: {question}\nA:\n")["input_ids"]


def test_a_merge_across_the_boundary_is_not_used() -> None:
    """Line breaks on both sides become one token when they are tokenised together."""
    before, answer = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "\n\n\nYes"
    together = BYTES(before + answer)["input_ids"]
    assert together[: len(BYTES(before)["input_ids"])] != BYTES(before)["input_ids"]
    split, _ = tokenised([turns("hi", answer)])
    assert scored_text(split) == f"{answer}<|im_end|>"


def test_every_response_of_a_chat_is_scored_and_nothing_after_the_last() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *turns("a?", "b.", "c?", "d.", "e?")]
    split, _ = tokenised([chat])
    assert scored_text(split) == "b.<|im_end|>d.<|im_end|>"
    assert "e?" not in BYTES.decode(split.ids)
    assert split.text_bytes.tolist() == [4]
    assert prompt_text(split).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_a_response_without_an_end_gets_one_and_the_account_says_so() -> None:
    tokenizer = byte_level(UNENDED)
    split, account = tokenised([turns("a?", "b. ")], tokenizer=tokenizer)
    assert scored_text(split, tokenizer) == "b.<|im_end|>"
    [warning] = account.warnings
    assert "does not end 1 of 1 last responses" in warning
    assert "<|im_end|> is appended" in warning


def test_the_first_token_is_the_one_that_the_tokenizer_starts_texts_with() -> None:
    """A tokenizer like Llama's starts each text with its first token; a chat template writes it."""
    from tokenizers import processors

    tokenizer = byte_level()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    split, _ = tokenised([turns("a?", "b.")], tokenizer=tokenizer, template="{prompt} ")
    assert split.ids[~split.scored].tolist() == tokenizer("a? ")["input_ids"]
    chat, _ = tokenised([turns("a?", "b.")], tokenizer=tokenizer)
    assert (chat.ids[~chat.scored] == 0).sum() == 2, "one for each turn, and none before the first"


def test_a_sentencepiece_tokenizer_keeps_its_pieces() -> None:
    """With a space before a word as part of its token, the response keeps that token."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab={"<unk>": 0, "</s>": 1, "▁": 2, "Q": 3, "A": 4, ":": 5, "▁Q": 6, "▁A": 7},
            merges=[("▁", "Q"), ("▁", "A")],
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    llama = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    split, _ = tokenised([turns("Q", " A")], tokenizer=llama, template="{prompt}:")
    assert llama.convert_ids_to_tokens(split.ids) == ["▁Q", ":", "▁A", "</s>"]
    assert split.scored.tolist() == [False, False, True, True]


def test_long_conversations_are_truncated_and_the_account_says_so() -> None:
    whole, _ = tokenised([turns("a?", "Yes, 2 + 2 = 4.")])
    length = len(whole.ids) - 3
    split, account = tokenised([turns("a?", "Yes, 2 + 2 = 4."), turns("a", "b")], length=length)
    text = scored_text(split)
    assert "Yes, 2 + 2 = 4.".startswith(text)
    assert len(text) < len("Yes, 2 + 2 = 4.")
    assert split.text_bytes.tolist() == [len(text), 1]
    assert any("train: 1 of 2 responses are truncated" in each for each in account.warnings)


def test_a_response_that_is_cut_off_entirely_is_left_out_or_refused() -> None:
    long, short = turns("a? " * 30, "b"), turns("a", "b")
    split, account = tokenised([long, *[short] * 3], length=30)
    assert len(split) == 3
    [part] = account.left_out
    assert (part.count, part.total) == (1, 4)
    assert "task.max_length=30 cuts off the whole response" in part.sentence
    with pytest.raises(InputError, match=r"task\.max_length=30 cuts off every response"):
        tokenised([long], length=30)


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (None, turns("a", "b"), "has no chat template.*task.prompt_template="),
        (
            "{{ raise_exception('roles must alternate') }}",
            turns("a", "b"),
            r"row 1 of the train rows: .*refuses the chat with roles user: roles must alternate",
        ),
        (
            "{% for m in messages %}{{ m['content'] if loop.last }}|{% endfor %}"
            "{{ '>' if add_generation_prompt }}",
            turns("a", "b", "c", "d"),
            "changes earlier text.*give chats with one response",
        ),
        (
            "{% for m in messages %}{{ m['role'] }}{% endfor %}",
            turns("a", "b"),
            "changes the response 'b'",
        ),
    ],
)
def test_templates_that_do_not_work_are_refused(
    template: str | None, chat: Any, message: str
) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message) as refused:
        tokenised([chat], tokenizer=tokenizer)
    assert "\n" not in str(refused.value)


def rows_of(causal_overrides: Callable[..., list[str]], path: Path, *more: str) -> Any:
    source = ["task=instruction", f"task.source={path}", "task.validation_size=5"]
    return compose(*causal_overrides(), *source, "task.test_size=5", *more).task.split_rows()


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


PAIRS = [{"prompt": f"word{n} word1", "response": f"word{n % 7}"} for n in range(40)]


def test_files_give_the_same_conversations(
    causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    chats = [{"messages": turns(row["prompt"], row["response"])} for row in PAIRS]
    expected = rows_of(causal_overrides, lines(tmp_path / "a.jsonl", PAIRS)).frames["test"]
    assert len(expected) == 5
    pd.DataFrame(PAIRS).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(chats).to_parquet(tmp_path / "a.parquet")
    as_json = [{"messages": json.dumps(chat["messages"])} for chat in chats]
    pd.DataFrame(as_json).to_csv(tmp_path / "b.csv", index=False)
    lines(tmp_path / "b.jsonl", chats)
    column = "task.messages_column=messages"
    for name, more in (
        ("a.csv", ()),
        ("a.parquet", (column,)),
        ("b.jsonl", (column,)),
        ("b.csv", (column,)),
    ):
        found = rows_of(causal_overrides, tmp_path / name, *more).frames["test"]
        assert found["messages"].tolist() == expected["messages"].tolist()


def test_an_empty_response_is_left_out_with_its_row(
    causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    rows = [*PAIRS[:3], {"prompt": "word9", "response": " "}, *PAIRS[3:]]
    account = rows_of(causal_overrides, lines(tmp_path / "a.jsonl", rows)).account
    assert account.lines[0].endswith("'response' is empty (first in row 4)")
    chats = [{"messages": turns(row["prompt"], row["response"])} for row in rows]
    chats.append({"messages": turns("word1")})
    path = lines(tmp_path / "b.jsonl", chats)
    account = rows_of(causal_overrides, path, "task.messages_column=messages").account
    assert "2 of 42 rows" in account.lines[0]
    assert account.lines[0].endswith("'messages (response)' is empty (first in row 4)")


def test_equal_prompts_stay_in_one_split(
    causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    rows = [{"prompt": f"word{n % 20}", "response": f"word{n}"} for n in range(60)]
    frames = rows_of(causal_overrides, lines(tmp_path / "a.jsonl", rows)).frames
    prompts = {name: set(frame["text"]) for name, frame in frames.items()}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]


@pytest.mark.parametrize("value", ["hello", [{"role": "user"}], [{"from": "a", "value": "b"}], 3])
def test_what_is_not_a_chat_is_refused(
    value: Any, causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = lines(tmp_path / "a.jsonl", [{"messages": value}])
    with pytest.raises(InputError, match=r"row 1: column 'messages' holds .*, which is not a chat"):
        rows_of(causal_overrides, path, "task.messages_column=messages")


def test_a_role_that_no_chat_template_knows_is_refused(
    causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    chat = [{"role": "human", "content": "2 + 2?"}, {"role": "gpt", "content": "4"}]
    path = lines(tmp_path / "a.jsonl", [{"messages": chat}])
    with pytest.raises(InputError, match=r"row 1: .* has the role 'human': rename it to one"):
        rows_of(causal_overrides, path, "task.messages_column=messages")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task.response_column=prompt"], "is also task.prompt_column"),
        (["task.prompt_template=Question:"], r"with \{prompt\} once"),
        (
            [r"task.prompt_template={prompt}\n", "task.messages_column=messages"],
            "leave one of the two out",
        ),
    ],
)
def test_invalid_settings_are_refused(
    more: list[str], message: str, causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    from lowrank_study.config.arguments import as_override

    with pytest.raises(InputError, match=message):
        rows_of(
            causal_overrides,
            lines(tmp_path / "a.jsonl", PAIRS),
            *(as_override(each) for each in more),
        )


def test_only_responses_are_learned(
    causal_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The response repeats the prompt's word, so its loss falls; prompts are random."""
    generator = np.random.default_rng(0)
    words = generator.integers(40, size=400)
    rows = [
        {"prompt": f"word{word} word{n % 40}", "response": f"word{word}"}
        for n, word in enumerate(words)
    ]
    spec = compose(
        *causal_overrides(),
        *("task=instruction", f"task.source={lines(tmp_path / 'a.jsonl', rows)}"),
        *("task.prompt_template='{prompt}'", "task.test_size=100", "task.validation_size=50"),
        *("method=full", "trainer.epochs=20", "method.learning_rate=1e-2"),
    )
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    assert result.test is not None
    assert (result.test.columns["tokens"] == 2).all(), "the word, and the end token"
    assert result.record["predicted_tokens"] == {"train": 500, "validation": 100, "test": 200}
    assert result.record["test"]["nats_per_token"] < 0.5 * np.log(40) / 2


@pytest.mark.slow
@pytest.mark.usefixtures("real_cache")
def test_smollm2_learns_to_add_in_its_own_chat_template(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {"prompt": f"Add {a} and {b}.", "response": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a, b in generator.integers(2, 60, size=(120, 2))
    ]
    spec = compose(
        *("task=instruction", f"task.source={lines(tmp_path / 'a.jsonl', rows)}", "model=smollm2"),
        *("task.train_size=24", "task.validation_size=8", "task.test_size=8"),
        *("method.rank=8", "method.target=all_linear", "method.learning_rate=1e-3"),
        *("trainer.batch_size=6", "trainer.evaluations=4"),
    )
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    first, *_, last = [step["nats_per_token"] for step in result.record["curve"]]
    assert last < 0.7 * first
    assert result.record["test"]["nats_per_token"] < 0.7 * first
