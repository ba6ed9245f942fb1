"""One matrix that two checkpoints share, read as a whole or in blocks.

    W0_OI, W_OI = match.read()

Axis suffixes: O out features, I in features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lowrank_study.checkpoints.formats.tensors import Array
from lowrank_study.checkpoints.matrices.finding import Matrix

_VOCABULARY = (
    "embed_tokens",
    "word_embeddings",
    "wte",
    "embed_in",
    "embed_out",
    "lm_head",
    "shared",
    "tok_embeddings",
    "token_embd",
    "output_embeddings",
    "decoder",
)
"""Last parts of module paths whose rows are tokens of a vocabulary."""

_PRECISION = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Storage dtypes by the step of a weight, finest first, for magnitudes down to about 1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """One matrix that both checkpoints have."""

    name: str
    """Module path, as in the tuned checkpoint."""
    storage_dtype: str
    """The coarser of the two storage dtypes."""
    shape: tuple[int, int]
    """(out, in) of the compared part: for a resized vocabulary, the rows both have."""
    before: Matrix
    """The pretrained matrix."""
    after: Matrix
    """The tuned matrix."""

    def read(self) -> tuple[Array, Array]:
        """Return (W0_OI, W_OI) exactly; for a resized vocabulary, the rows both have."""
        rows = self.shape[0]
        return self.before.read()[:rows], self.after.read()[:rows]

    def read_blocks(self, entries: int) -> Iterator[tuple[slice, Array, Array]]:
        """Yield (part, W0, W) in blocks along the longer axis, which comes first.

        The numbers equal those of `read`, but only one block is in memory at a time. Formats that
        can't be read in parts (GGUF, PyTorch's own files, interleaved heads) are held as a whole.

        Args:
            entries: largest number of entries in a block; a block has at least one row or column.

        Yields:
            The range along the longer axis, and both matrices there: (range, shorter axis).
        """
        first = 0
        blocks = (each.read_blocks(self.shape, entries) for each in (self.before, self.after))
        for W0, W in zip(*blocks, strict=True):
            yield slice(first, first + W0.shape[0]), W0, W
            first += W0.shape[0]

    @property
    def is_single(self) -> bool:
        """Whether both are read as float32, so a sum of squares in float64 can't overflow."""
        return not any(
            matrix.storage_dtype == "float64" or matrix.weights.is_scaled(matrix.tensor)
            for matrix in (self.before, self.after)
        )


def match_of(name: str, before: Matrix, after: Matrix) -> Match | None:
    """Return the match of two matrices, or None if their shapes differ.

    Args:
        name: module path in the tuned checkpoint; only a vocabulary may differ in rows.
        before: the pretrained matrix.
        after: the tuned matrix.
    """
    rows = min(before.shape[0], after.shape[0])
    if before.shape[1] != after.shape[1] or (
        before.shape[0] != after.shape[0] and not is_vocabulary(name)
    ):
        return None
    return Match(
        name=name,
        storage_dtype=coarser(before.storage_dtype, after.storage_dtype),
        shape=(rows, before.shape[1]),
        before=before,
        after=after,
    )


def coarser(*dtypes: str) -> str:
    """Return the storage dtype with fewest significant bits; GGUF's quantisations are coarsest."""
    return max(dtypes, key=lambda dtype: _PRECISION.index(dtype) if dtype in _PRECISION else 99)


def is_vocabulary(module: str) -> bool:
    """Whether the rows of a module's weight are tokens of a vocabulary, which may be resized.

    Args:
        module: its path; GGUF and Llama's own files call the head just "output".
    """
    return module == "output" or module.rpartition(".")[2] in _VOCABULARY


def is_head(module: str) -> bool:
    """Whether a module turns hidden states into scores of tokens; Whisper's is `proj_out`."""
    heads = ("lm_head", "embed_out", "output", "decoder")
    return module == "proj_out" or (is_vocabulary(module) and module.rpartition(".")[2] in heads)


def may_be_tied(config: Mapping[str, Any]) -> bool:
    """Whether a model may tie its head: its config, or its language model's, doesn't deny it."""
    inner = config.get("text_config")
    configs = [config, inner if isinstance(inner, dict) else {}]
    said = [each["tie_word_embeddings"] for each in configs if "tie_word_embeddings" in each]
    return True in said or not said
