"""Check that model and tokenizer agree on padding, positions, vocabulary and end tokens.

A classifier finds the last token of a text by the padding id in its configuration, but the
tokenizer pads the texts. If the two ids differ, the tokenizer's is used.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lowrank_study.data.conversations import longest_prompt
from lowrank_study.data.splits import Splits
from lowrank_study.data.tokenizer import has_tokenizer, padding_id
from lowrank_study.errors import InputError
from lowrank_study.spec import RunSpec
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.unpadded import counts_from_padding, positions_of


def pad_by_tokenizer(model: nn.Module, folder: Path) -> None:
    """Set the padding id of a freshly loaded model to its tokenizer's.

    RoBERTa and related models keep their own id, because they count positions from it. A run's
    checkpoint has no tokenizer, and its id is set already.

    Raises:
        InputError: The padding id is not in the model's vocabulary.
    """
    if not has_tokenizer(folder) or counts_from_padding(model):
        return
    found = padding_id(folder)
    config: Any = model.config
    words = _word_table(model)
    if words is not None and found >= words.num_embeddings:
        raise InputError(
            f"{folder}: its tokenizer pads with token {found}, but the model has "
            f"{words.num_embeddings} words: set pad_token in tokenizer_config.json to one of them"
        )
    config.get_text_config().pad_token_id = found
    if words is not None and words.padding_idx is not None:
        words.padding_idx = found  # this row gets no gradient


def check_reads(model: nn.Module, spec: RunSpec, splits: Splits) -> None:
    """Refuse texts that the model can't read; it may be on the meta device.

    Raises:
        InputError: A text, or a prompt with its answer, has more tokens than the model has
            positions, a token is not in the
            vocabulary, or a model that reads a text at its end token (T5, BART) finds none or
            several in a text.
    """
    positions, longest = positions_of(model), splits.longest
    if positions is not None and longest > positions:
        raise InputError(
            f"task.max_length={spec.task.max_length}: a text has {longest} tokens, but "
            f"{spec.model.name} has positions for {positions}: set it to at most {positions}"
        )
    if positions is not None and isinstance(spec.task, Generation):
        prompt = longest_prompt(splits.test)
        if prompt + spec.task.max_new_tokens > positions:
            raise InputError(
                f"task.max_new_tokens={spec.task.max_new_tokens}: a prompt has {prompt} tokens, "
                f"but {spec.model.name} has positions for {positions}: set it to at most "
                f"{positions - prompt}"
            )
    texts = (splits.train, splits.validation, splits.test)
    config: Any = model.config
    words = _word_table(model)
    largest = max(int(split.ids.max()) for split in texts)
    if words is not None and largest >= words.num_embeddings:
        raise InputError(
            f"the tokenizer of {spec.model.name} gives token {largest}, but the model has "
            f"{words.num_embeddings} words: they belong to different models; give a matching pair"
        )
    if hasattr(model, "classification_head"):
        is_end = np.concatenate([split.ids for split in texts]) == config.eos_token_id
        lengths = np.concatenate([split.lengths for split in texts])
        ends = np.add.reduceat(is_end.astype(int), np.cumsum(lengths) - lengths)
        if (ends != 1).any():
            raise InputError(
                f"{spec.model.name} reads a text at its end token, number {config.eos_token_id}, "
                f"but a text has {ends[ends != 1][0]} of them: use a tokenizer that ends each text "
                "with it, and remove it from inside the texts"
            )


def _word_table(model: nn.Module) -> nn.Embedding | None:
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    return table if isinstance(table, nn.Embedding) else None
