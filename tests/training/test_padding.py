"""Model and tokenizer must agree on padding, or the run is refused before it begins."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.data.tokenizer import load_tokenizer
from lowrank_study.errors import InputError
from lowrank_study.spec import RunSpec
from lowrank_study.training.batches import Batch, extreme_texts
from lowrank_study.training.fit import fit
from lowrank_study.training.models import build_model, check_fits
from lowrank_study.training.packing import Pack
from lowrank_study.training.tracking import Tracker
from lowrank_study.training.unpadded import padded_scores

CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 4}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Copy a model's folder with changed values in one of its JSON files."""

    def give(model: Path, file: str, **values: Any) -> Path:
        folder = tmp_path / "edited"
        if not folder.exists():
            shutil.copytree(model, folder)
        read = json.loads((folder / file).read_text())
        kept = {**read, **values}.items()
        (folder / file).write_text(json.dumps({k: v for k, v in kept if v is not None}))
        return folder

    return give


def spec_on(tiny_overrides: list[str], family: str, folder: Path, *more: str) -> RunSpec:
    overrides = [*tiny_overrides, f"model={family}", f"model.source={folder}"]
    return compose(*overrides, "model.dropout=0.0", "trainer.precision=fp32", *more)


@pytest.mark.parametrize("reference", ["false", "true"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bloom"])
def test_the_tokenizers_padding_id_is_used(
    family: str,
    reference: str,
    tiny_overrides: list[str],
    tiny_model: Callable[[str], Path],
    sized_model: Callable[..., Path],
    edited: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The configuration's padding id is 7, a word; decoders would read a padding token's score."""
    own = {"opt": OPT, "bloom": BLOOM}.get(family)
    model = sized_model(family, **own) if own else tiny_model(family)
    folder = edited(model, "config.json", pad_token_id=7)
    spec = spec_on(tiny_overrides, family, folder, "method=full", f"trainer.reference={reference}")
    result = fit(spec, checkpoint_folder=tmp_path / "out", tracker=Tracker())
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert alone.config.pad_token_id == 0
    split = load_splits(spec.task, folder).test
    texts = [split.tokens(row).tolist() for row in range(len(split))]
    inputs = load_tokenizer(folder).pad({"input_ids": texts}, return_tensors="pt")
    with torch.no_grad():
        logits = alone(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
    losses = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(split.labels), reduction="none"
    )
    assert losses.std() > 0
    np.testing.assert_allclose(losses, result.test.losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reference", [False, True])
def test_positions_counted_from_padding_do_not_move(
    reference: bool,
    tiny_overrides: list[str],
    tiny_model: Callable[[str], Path],
    edited: Callable[..., Path],
) -> None:
    """RoBERTa's first position is the one after its configuration's padding token."""
    folder = edited(tiny_model("roberta"), "config.json", pad_token_id=4)  # a word of the texts
    spec = spec_on(tiny_overrides, "roberta", folder)
    model = build_model(spec, folder, number_of_labels=2)
    assert model.config.pad_token_id == 4
    sample = extreme_texts([load_splits(spec.task, folder).train], 16)
    assert 4 in sample.ids_T
    Pack([model], device=CPU, pad_id=0, sample=sample, reference=reference)


@pytest.mark.parametrize("reference", [False, True])
def test_a_padding_token_inside_a_text_is_read_as_the_stock_model_reads_it(
    reference: bool, tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    """If the end token is also the padding token, the head reads the last other token."""
    spec = spec_on(tiny_overrides, "gpt2", tiny_model("gpt2"))
    model = build_model(spec, tiny_model("gpt2"), number_of_labels=2)
    model.config.pad_token_id = 3
    lengths = (5, 1, 4)
    batch = Batch(
        rows=np.arange(3),
        lengths=lengths,
        ids_T=torch.tensor([8, 3, 9, 3, 3, 3, 5, 6, 7, 3]),
        types_T=torch.zeros(10, dtype=torch.long),
        labels_N=torch.tensor([0, 1, 0]),
        scored_T=torch.zeros(10, dtype=torch.bool),
    )
    with torch.no_grad():
        expected = torch.cat([padded_scores(model.eval(), t, CPU, 3)[0] for t in batch.parts(1)])
    pack = Pack([model], device=CPU, pad_id=3, sample=batch, reference=reference)
    with torch.no_grad():
        torch.testing.assert_close(pack.scores_of(0, batch), expected, rtol=1e-5, atol=1e-6)


def test_a_tokenizer_without_a_padding_token_is_refused(
    tiny_model: Callable[[str], Path], edited: Callable[..., Path]
) -> None:
    folder = edited(tiny_model("llama"), "tokenizer_config.json", pad_token=None)
    with pytest.raises(InputError, match=r'no padding token.*as in "pad_token": "\[PAD\]"'):
        load_tokenizer(folder)
    edited(folder, "tokenizer_config.json", pad_token="[PAD]")
    assert load_tokenizer(folder).pad_token_id == 0


def test_a_padding_token_outside_the_vocabulary_is_refused(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(tiny_model("gpt2"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"pads with token 48, but the model has 48 words: set"):
        check_fits(spec_on(tiny_overrides, "gpt2", folder))


def test_tokens_outside_the_vocabulary_are_refused(
    tiny_overrides: list[str], sized_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = sized_model("gpt2", n_embd=16, n_layer=2, n_head=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(InputError, match=r"gives token 47, but the model has 20 words"):
        check_fits(spec_on(tiny_overrides, "gpt2", folder))


def test_texts_beyond_opts_positions_are_refused(
    tiny_overrides: list[str], sized_model: Callable[..., Path], edited: Callable[..., Path]
) -> None:
    folder = edited(sized_model("opt", **OPT), "config.json", max_position_embeddings=9)
    with pytest.raises(InputError, match=r"a text has 14 tokens, but tiny has positions for 9"):
        check_fits(spec_on(tiny_overrides, "opt", folder))


def test_t5_needs_one_end_token_in_each_text(
    tiny_overrides: list[str], sized_model: Callable[..., Path], edited: Callable[..., Path]
) -> None:
    model = sized_model("t5", **T5, decoder_start_token_id=0)
    check_fits(spec_on(tiny_overrides, "t5", model))
    folder = edited(model, "config.json", eos_token_id=8)  # a word, in some texts
    with pytest.raises(InputError, match=r"its end token, number 8, but a text has 0 of them"):
        check_fits(spec_on(tiny_overrides, "t5", folder))
