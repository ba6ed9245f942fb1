"""Language models: the loss is the library's, windows lose nothing, adapters load in PEFT."""

import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowrank_study.config.run import compose
from lowrank_study.data.splits import Split, load_splits, with_shuffled_labels
from lowrank_study.errors import InputError
from lowrank_study.tasks import Predictions
from lowrank_study.tasks.causal import CausalTask
from lowrank_study.training.batches import Batch, batch_of, extreme_texts
from lowrank_study.training.fit import Job, fit, fit_together
from lowrank_study.training.member import FitResult
from lowrank_study.training.models import build_model, check_fits, load_model
from lowrank_study.training.tracking import Tracker
from lowrank_study.training.unpadded import padded_scores

CPU = torch.device("cpu")
Overrides = Callable[..., list[str]]


def some_batch() -> Batch:
    """Three texts of 5, 2 and 4 tokens; the second half of each is scored."""
    return Batch(
        rows=np.arange(3),
        lengths=(5, 2, 4),
        ids_T=torch.tensor([1, 4, 2, 3, 9, 5, 6, 1, 2, 3, 4]),
        types_T=torch.zeros(11, dtype=torch.long),
        labels_N=torch.arange(3),
        scored_T=torch.tensor([0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1], dtype=torch.bool),
    )


def test_the_loss_is_that_of_transformers_with_masked_labels(
    tiny_causal_model: Callable[..., Path],
) -> None:
    folder, batch = tiny_causal_model("llama"), some_batch()
    model: Any = load_model(CausalTask, folder, number_of_labels=0, dropout=0.0).eval()
    with torch.no_grad():
        [losses_S] = padded_scores(model, batch, CPU, pad_id=0)
    loss_N = CausalTask.loss(losses_S, batch, reduction="none")
    assert CausalTask.loss_terms(batch) == len(losses_S) == 6
    total = CausalTask.loss(losses_S, batch, reduction="sum")
    torch.testing.assert_close(total, loss_N.sum().float())
    stock = AutoModelForCausalLM.from_pretrained(folder)
    for number, place in enumerate((slice(0, 5), slice(5, 7), slice(7, 11))):
        labels = torch.where(batch.scored_T, batch.ids_T, -100)[place]
        with torch.no_grad():
            mean = stock(input_ids=batch.ids_T[None, place], labels=labels[None]).loss
        torch.testing.assert_close(loss_N[number].float(), mean * int((labels >= 0).sum()))


def test_documents_are_rows_of_predictions_and_weighted_by_their_tokens() -> None:
    split = Split(
        ids=np.zeros(9, dtype=np.int32),
        types=np.zeros(9, dtype=np.int8),
        offsets=np.array([0, 4, 7, 9]),
        labels=np.array([0, 0, 1]),  # the first document has two windows
        scored=np.array([0, 1, 1, 1, 0, 1, 1, 0, 1], dtype=bool),
        text_bytes=np.array([6, 4, 5]),
        is_right=np.ones(3, dtype=bool),
    )
    found = CausalTask.rows(split, {"loss": np.array([3.0, 2.0, 4.0])})
    table = pd.DataFrame(found)
    assert table.to_dict("list") == {
        "label": [0, 1],
        "loss": [5.0, 4.0],
        "tokens": [5, 1],
        "bytes": [10, 5],
    }
    metrics = CausalTask.metrics(Predictions(task=CausalTask, columns=found))
    assert metrics["nats_per_token"] == metrics["loss"] == 9 / 6
    assert metrics["bits_per_byte"] == pytest.approx(9 / math.log(2) / 15)
    assert metrics["perplexity"] == pytest.approx(math.exp(1.5))
    scores, weights = CausalTask.scores(table), CausalTask.weights(table)
    assert scores.tolist() == [1.0, 4.0]
    assert np.average(scores, weights=weights) == pytest.approx(metrics["nats_per_token"])


def trained(tmp_path: Path, *overrides: str) -> FitResult:
    name = str(len(list(tmp_path.iterdir())))
    return fit(compose(*overrides), checkpoint_folder=tmp_path / name, tracker=Tracker())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["method=full", "method.rank=4"])
def test_the_held_out_loss_falls_on_the_fast_path_as_on_the_plain_one(
    family: str, method: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = [*causal_overrides(family), method, "trainer.epochs=2"]
    target = ["method.target=all_linear"] if method != "method=full" else []
    fast = trained(tmp_path, *overrides, *target)
    plain = trained(tmp_path, *overrides, *target, "trainer.reference=true")
    assert fast.test is not None
    assert plain.test is not None
    np.testing.assert_allclose(fast.test.losses, plain.test.losses, rtol=1e-5, atol=1e-4)
    first = trained(tmp_path, *overrides, *target, "method.learning_rate=1e-30")
    gain = first.record["test"]["nats_per_token"] - fast.record["test"]["nats_per_token"]
    assert gain > (0.5 if method == "method=full" else 0.02)


def test_a_pack_gives_what_each_run_gives_alone(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    specs = [
        compose(*causal_overrides(), f"method.rank={rank}", f"seed={seed}", "data_seed=0")
        for rank, seed in ((2, 0), (6, 1))
    ]
    jobs = [
        Job(spec=spec, checkpoint_folder=tmp_path / str(n), tracker=Tracker())
        for n, spec in enumerate(specs)
    ]
    together = fit_together(jobs, device="cpu")
    for number, spec in enumerate(specs):
        alone = fit(spec, checkpoint_folder=tmp_path / f"alone{number}", tracker=Tracker())
        packed = together[number]
        assert isinstance(packed, FitResult)
        assert packed.test is not None
        assert alone.test is not None
        np.testing.assert_allclose(packed.test.losses, alone.test.losses, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("target", ["attention_qv", "lm_head"])
def test_a_saved_adapter_gives_the_same_losses_in_peft(
    tied: bool, target: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = causal_overrides(tie_word_embeddings=tied)
    spec = compose(*overrides, "method.rank=4", f"method.target=[{target}]")
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    assert result.test is not None
    folder = Path(spec.model.source.path)  # type: ignore[union-attr]
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    found = losses_of(model, load_splits(spec.task, folder).test)
    np.testing.assert_allclose(found, result.test.losses, rtol=1e-5, atol=1e-4)
    counted = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert result.record["total_parameters"] - result.record["adapter_parameters"] == counted


@pytest.mark.parametrize("method", ["method=full", "method.target=[lm_head]"])
def test_a_tied_head_is_counted_once(
    method: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = causal_overrides(tie_word_embeddings=True)
    record = trained(tmp_path, *overrides, method).record
    folder = Path(compose(*overrides).model.source.path)  # type: ignore[union-attr]
    with safe_open(folder / "model.safetensors", "numpy") as stored:
        counted = sum(stored.get_tensor(name).size for name in stored.keys())  # noqa: SIM118
    assert record["total_parameters"] - record["adapter_parameters"] == counted
    if method == "method=full":
        assert record["trainable_parameters"] == counted


@pytest.mark.parametrize("peft_type", ["LORA", "IA3"])
def test_an_adapter_that_peft_builds_is_trained_and_loads_again(
    peft_type: str, causal_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = [*causal_overrides(), "method=peft", f"method.peft_type={peft_type}"]
    spec = compose(*overrides, "method.target=[query,mlp_down]")
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    assert result.test is not None
    folder = Path(spec.model.source.path)  # type: ignore[union-attr]
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    found = losses_of(model, load_splits(spec.task, folder).test)
    np.testing.assert_allclose(found, result.test.losses, rtol=1e-5, atol=1e-4)


def losses_of(model: Any, split: Split) -> np.ndarray:
    """The summed loss of each document, by transformers' own loss of each window."""
    losses = np.zeros(split.labels.max() + 1)
    for row in range(len(split)):
        ids = torch.tensor(split.tokens(row)[None].astype(np.int64))
        with torch.no_grad():
            mean = float(model(input_ids=ids, labels=ids).loss)
        losses[split.labels[row]] += mean * (ids.shape[1] - 1)
    return losses


def test_a_tied_embedding_stays_in_fp32_beside_a_rounded_map(
    causal_overrides: Overrides,
) -> None:
    from lowrank_study.methods.layers.linear import round_frozen

    spec = compose(*causal_overrides(tie_word_embeddings=True), "method.rank=2")
    folder = Path(spec.model.source.path)  # type: ignore[union-attr]
    model: Any = build_model(spec, folder, number_of_labels=0)
    before = model.model.embed_tokens.weight.clone()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    round_frozen(model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.model.embed_tokens.weight, before, rtol=0, atol=0)


def test_windows_predict_each_token_once_and_keep_all_bytes(
    causal_overrides: Overrides, document_file: Path
) -> None:
    spec = compose(*causal_overrides())
    folder = Path(spec.model.source.path)  # type: ignore[union-attr]
    splits = load_splits(spec.task, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = set(pd.read_json(document_file, lines=True)["text"])
    split = splits.test
    assert split.lengths.max() == 12
    for document in range(20):
        rows = np.flatnonzero(split.labels == document)
        ids = [split.tokens(row) for row in rows]
        scored = [split.scored[split.offsets[row] : split.offsets[row + 1]] for row in rows]
        assert all(not each[0] and each[1:].all() for each in scored)
        whole = np.concatenate([ids[0][:1], *(each[1:] for each in ids)])
        for before, after in pairwise(ids):
            assert before[-1] == after[0]
        assert whole[0] == tokenizer.bos_token_id
        assert whole[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(whole[1:-1])
        assert text in texts
        assert split.text_bytes[rows].sum() == len(text.encode())
        assert (split.text_bytes[rows[:-1]] > 0).all()  # the last may hold the end token only
    cut = sum(np.bincount(split.labels) > 1)
    [line] = [each for each in splits.account.read if each.startswith("test:") and "cut" in each]
    assert f"{cut} of 20 documents have more than task.max_length=12 tokens" in line


def test_scored_tokens_stay_beside_their_tokens(causal_overrides: Overrides) -> None:
    spec = compose(*causal_overrides())
    splits = load_splits(spec.task, Path(spec.model.source.path))  # type: ignore[union-attr]
    batch = batch_of(splits.train, np.array([4, 2, 9]))
    starts = np.cumsum([0, *batch.lengths[:-1]])
    assert np.flatnonzero(~batch.scored_T.numpy()).tolist() == starts.tolist()
    for part, start in zip(batch.parts(1), starts, strict=True):
        torch.testing.assert_close(part.ids_T, batch.ids_T[start : start + len(part.ids_T)])
        assert part.scored_T.tolist() == [False, *[True] * (len(part.ids_T) - 1)]
    sample = extreme_texts([splits.train, splits.test], 4)
    assert int((~sample.scored_T).sum()) == 4


def test_shuffled_tokens_keep_their_frequencies_and_places(causal_overrides: Overrides) -> None:
    spec = compose(*causal_overrides())
    splits = load_splits(spec.task, Path(spec.model.source.path))  # type: ignore[union-attr]
    shuffled = with_shuffled_labels(splits, seed=0)
    before, after = splits.train, shuffled.train
    assert (before.ids[before.scored] != after.ids[after.scored]).mean() > 0.5
    assert (before.ids[~before.scored] == after.ids[~after.scored]).all()
    assert sorted(before.ids) == sorted(after.ids)
    assert shuffled.test is splits.test


def test_a_folder_of_files_is_read_as_documents(
    causal_overrides: Overrides, tmp_path: Path, document_file: Path
) -> None:
    texts = pd.read_json(document_file, lines=True)["text"]
    for number, text in enumerate(texts):
        place = tmp_path / "notes" / f"part{number % 6}" / f"{number}.md"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (tmp_path / "notes" / "part0" / "other.py").write_text("not read")
    hidden = tmp_path / "notes" / ".git" / "7.md"
    hidden.parent.mkdir()
    hidden.write_text("hidden")
    folder = [f"task.source={tmp_path / 'notes'}", "task.train=**/*.md"]
    rows = compose(*causal_overrides(), *folder).task.split_rows()
    together = pd.concat(rows.frames.values())
    assert set(together["text"]) <= set(texts)
    assert "**/*.md: 120 rows read" in rows.account.read[0]
    grouped = compose(*causal_overrides(), *folder, "task.group_column=folder").task.split_rows()
    groups = {name: set(frame["group"]) for name, frame in grouped.frames.items()}
    assert not groups["train"] & groups["test"]


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("a.csv", "body\nx\n", (), r"task.text_column='text' is not a column of a.csv"),
        ("a.csv", "text\n \n \n", (), "has no rows"),
        (
            "a.csv",
            "text\nfirst\nsecond\nthird\n",
            (),
            "validation_size=1 task.test_size=1, or give",
        ),
        ("a.txt", "one text", (), "3 splits are made of them; each row or file is one text: give"),
        ("a.pdf", "%PDF-1.7", (), "is a PDF"),
        ("a.csv", "text\nx\n", ("task.group_column=text",), "is also task.text_column"),
    ],
)
def test_unusable_documents_are_refused_in_one_line(
    name: str,
    content: str,
    more: tuple[str, ...],
    message: str,
    causal_overrides: Overrides,
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        compose(*causal_overrides(), f"task.source={tmp_path / name}", *more).task.split_rows()
    assert "\n" not in str(refused.value)


def test_a_pattern_that_matches_tables_is_refused(
    causal_overrides: Overrides, tmp_path: Path
) -> None:
    for name in ("a.csv", "b.txt"):
        (tmp_path / name).write_text("text\nx\n")
    task = compose(*causal_overrides(), f"task.source={tmp_path}", "task.train=*").task
    with pytest.raises(InputError, match=r"matches the table .*a\.csv"):
        task.split_rows()
    with pytest.raises(InputError, match=r"no file '\*\.rst' in .*; its files: a.csv, b.txt"):
        compose(*causal_overrides(), f"task.source={tmp_path}", "task.train=*.rst")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=head"], "method=head trains only a new head, but a causal language model has"),
        (["trainer.head_learning_rate=0.1"], r"head_learning_rate=0.1: .* has no new head"),
    ],
)
def test_settings_of_a_head_are_refused(
    overrides: list[str], message: str, causal_overrides: Overrides
) -> None:
    with pytest.raises(InputError, match=message):
        check_fits(compose(*causal_overrides(), *overrides))


def test_an_encoder_is_refused(
    causal_overrides: Overrides, tiny_causal_model: Callable[..., Path]
) -> None:
    folder = tiny_causal_model("bert", is_decoder=True)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"is_decoder": true', '"is_decoder": false'))
    overrides = [*causal_overrides(), "model=bert", f"model.source={folder}"]
    with pytest.raises(InputError, match=r"model_type='bert' reads the tokens .*choose a decoder"):
        check_fits(compose(*overrides))


def test_an_encoder_is_refused_before_its_tokenizer_is(
    causal_overrides: Overrides, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("bert")
    spec = compose(*causal_overrides(), "model=bert", f"model.source={folder}")
    with pytest.raises(InputError, match="choose a decoder, such as model=smollm2"):
        load_splits(spec.task, folder)


def test_a_folder_without_a_pattern_is_refused(causal_overrides: Overrides, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"its texts by a pattern, as in 'task\.train=\*\*/\*\.txt'"
    ):
        compose(*causal_overrides(), f"task.source={tmp_path}")


def test_a_tokenizer_without_an_end_token_is_refused(
    causal_overrides: Overrides, tiny_model: Callable[[str], Path]
) -> None:
    spec = compose(*causal_overrides(), f"model.source={tiny_model('llama')}")
    with pytest.raises(InputError, match=r"has no token that ends a text.*eos_token"):
        load_splits(spec.task, tiny_model("llama"))


def test_tokens_outside_of_the_vocabulary_are_refused(
    causal_overrides: Overrides, tiny_causal_model: Callable[..., Path], tmp_path: Path
) -> None:
    small = tiny_causal_model("llama", num_hidden_layers=1)
    folder = shutil.copytree(small, tmp_path / "small")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(30)
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"gives token \d+, but the model has 30 words"):
        check_fits(compose(*causal_overrides(), f"model.source={folder}"))
