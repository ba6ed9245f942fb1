"""A model's tokenizer: load it, hash its files, and find its padding token."""

import functools
from pathlib import Path
from typing import Any

from lowrank_study import assets
from lowrank_study.errors import InputError
from lowrank_study.hashing import sha256_of_files


def load_tokenizer(model_folder: Path) -> Any:
    """Return the model's tokenizer, with a padding token even if the model defines none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(
            f"{model_folder}: its tokenizer has no padding token, and no end token to pad with: "
            'name one of its tokens in tokenizer_config.json, as in "pad_token": "[PAD]"'
        )
    return tokenizer


def end_id(tokenizer: Any) -> int:
    """Return the id of the token that ends a text."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no token that ends a text, so a model "
            'would never stop: name one in tokenizer_config.json, as in "eos_token": "</s>"'
        )
    return int(tokenizer.eos_token_id)


def end_ids(tokenizer: Any) -> set[int]:
    """Return the ids that may end a turn: the end token, and the tokens that are added to words."""
    return {end_id(tokenizer), *tokenizer.added_tokens_decoder}


def start_id(tokenizer: Any) -> int:
    """Return the id of the token that starts a text; the end token if there is none."""
    return end_id(tokenizer) if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def text_start(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer puts before each text: its first token, or none."""
    started = [tokenizer.bos_token_id]
    return started if tokenizer("a")["input_ids"][:1] == started else []


def has_tokenizer(model_folder: Path) -> bool:
    """Return whether a folder holds a tokenizer; the checkpoint of a run has none."""
    return bool(_files(model_folder))


def padding_id(model_folder: Path) -> int:
    """Return the id of the tokenizer's padding token."""
    return _padding_id(model_folder, tokenizer_sha256(model_folder))


@functools.cache
def _padding_id(model_folder: Path, sha256: str) -> int:
    return int(load_tokenizer(model_folder).pad_token_id)


def tokenizer_sha256(model_folder: Path) -> str:
    """Return one hash over the files that define the tokenizer."""
    names = _files(model_folder)
    if not names:
        needed = ", ".join(assets.TOKENIZER_FILES[:6])
        raise InputError(f"{model_folder} has no tokenizer: add one of {needed}")
    return sha256_of_files(model_folder, names)


def _files(model_folder: Path) -> list[str]:
    patterns = assets.TOKENIZER_FILES
    return [file.name for pattern in patterns for file in model_folder.glob(pattern)]
