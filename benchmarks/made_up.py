"""Write models with random weights and made-up texts, for a machine that reaches no network.

    overrides = made_up(folder, tiny=False)["bert"]
    spec = compose(*overrides, "method.rank=8")

Neither weights nor words affect the cost of a step. The shapes are those of MiniLM-L6 and of
SmolLM2-135M, and texts are as long as film reviews.
"""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

WORDS = [f"word{number}" for number in range(2000)]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LENGTHS = 8, 46
"""Least and most words of a text."""
SHAPES = {
    "bert": {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "llama": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
}
TINY = {
    "vocab_size": len(WORDS) + len(SPECIAL),
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 64,
}


def made_up(folder: Path, *, tiny: bool) -> dict[str, list[str]]:
    """Write both models and a table of texts, and return the overrides that select them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = 128 if tiny else 2200
    table = _write_texts(folder / "texts.csv", rows)
    size = rows // 16
    return {
        family: [
            *(f"model={family}", f"model.source={_write_model(family, folder / family, tiny)}"),
            *("model.name=made_up", "model.dropout=0.0"),
            *("task=file", f"task.source={table}", "task.name=made_up", "task.max_length=64"),
            *(f"task.validation_size={size}", f"task.test_size={2 * size}"),
        ]
        for family in SHAPES
    }


def _write_texts(path: Path, rows: int) -> Path:
    generator = random.Random(0)
    lines = ["text,label"]
    for row in range(rows):
        words = generator.choices(WORDS, k=generator.randint(*LENGTHS))
        lines.append(f"{' '.join(words)},{'up' if row % 2 else 'down'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def _write_model(family: str, folder: Path, tiny: bool) -> Path:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    config = AutoConfig.for_model(
        family,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **(TINY if tiny else SHAPES[family]),
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
