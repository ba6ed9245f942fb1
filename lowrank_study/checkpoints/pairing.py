"""Two checkpoints of one model, matrix by matrix, with everything left out named.

    with open_weights("before") as before, open_weights("after") as after:
        pairing = pair(before, after)
        for match, W0_OI, W_OI in pairing.read_matrices():
            delta_OI = W_OI - W0_OI
        pairing.skipped        # {"lm_head": "the same as model.embed_tokens (tied), ..."}

Axis suffixes: O out features, I in features.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lowrank_study.checkpoints.matrices import Matrix, find_matrices
from lowrank_study.checkpoints.paths import shown
from lowrank_study.checkpoints.tensors import Array
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

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
"""Last parts of module paths whose rows are the tokens of a vocabulary."""

_ARCHITECTURE = (
    "model_type",
    "gguf_architecture",
    "hidden_size",
    "n_embd",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "num_kv_heads",
    "head_dim",
    "multi_query",
    "new_decoder_architecture",
)
"""Settings of config.json that have to agree: two of one shape could be cut apart differently."""

_PRECISION = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""From the finest step of a weight to the coarsest, down to magnitudes of about 1e-5."""
_SAMPLE = 4096
_BLOCK = 2**22
"""Entries of two matrices compared at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """One matrix that both checkpoints have."""

    name: str
    """Module path, as in the tuned checkpoint."""
    storage_dtype: str
    """The coarser of the two storage dtypes."""
    shape: tuple[int, int]
    """(out, in) of what is compared: for a resized vocabulary, the rows both have."""
    before: Matrix
    """The pretrained one."""
    after: Matrix
    """The tuned one."""

    def read(self) -> tuple[Array, Array]:
        """Return (W0_OI, W_OI) exactly; for a resized vocabulary, the rows both have."""
        rows = self.shape[0]
        return self.before.read()[:rows], self.after.read()[:rows]

    def read_blocks(self, entries: int) -> Iterator[tuple[slice, Array, Array]]:
        """Yield (part, W0, W) in blocks of the longer axis, that axis first.

        The same numbers as of `read`, of which only a block is in memory at a time. What can't
        be read in parts (GGUF, PyTorch's own files, heads stored in turns) is held as a whole.

        Args:
            entries: most entries of a block, but for a single row or column.

        Yields:
            The part of the longer axis, and both matrices there: (part, shorter axis).
        """
        first = 0
        blocks = (each.read_blocks(self.shape, entries) for each in (self.before, self.after))
        for W0, W in zip(*blocks, strict=True):
            yield slice(first, first + W0.shape[0]), W0, W
            first += W0.shape[0]

    @property
    def is_single(self) -> bool:
        """Whether both are read as float32, so that no sum of squares in float64 can overflow."""
        return not any(
            matrix.storage_dtype == "float64" or matrix.weights.is_scaled(matrix.tensor)
            for matrix in (self.before, self.after)
        )


class Pairing:
    """The matrices and vectors two checkpoints share, and what was left out."""

    def __init__(
        self,
        *,
        before: Weights,
        after: Weights,
        matches: list[Match],
        vectors: dict[str, tuple[str, str]],
        skipped: dict[str, str],
        flags: list[str],
    ) -> None:
        self.before = before
        """The pretrained checkpoint."""
        self.after = after
        """The tuned checkpoint."""
        self.matches = matches
        """The matched matrices, in the order of the tuned checkpoint."""
        self.vectors = vectors
        """Matched vectors and scalars: name to (tensor before, tensor after)."""
        self.skipped = skipped
        """What was left out, with the reason; `read_matrices` adds matrices with NaN or Inf."""
        self.flags = flags
        """What a report has to say of this pair, one sentence each."""

    def read_matrices(self) -> Iterator[tuple[Match, Array, Array]]:
        """Yield (match, W0_OI, W_OI) one at a time, leaving out what isn't finite."""
        for match in self.matches:
            if (both := self.read(match)) is not None:
                yield match, *both

    def read_vectors(self) -> Iterator[tuple[str, Array, Array]]:
        """Yield (name, before, after) for vectors and scalars, leaving out what isn't finite."""
        for name, (tensor_before, tensor_after) in self.vectors.items():
            w0, w = self.before.read(tensor_before), self.after.read(tensor_after)
            if self._finite(name, w0, w):
                yield name, w0, w

    def read(self, match: Match) -> tuple[Array, Array] | None:
        """Return (W0_OI, W_OI) of a match, or None where it isn't finite and is left out."""
        W0_OI, W_OI = match.read()
        return (W0_OI, W_OI) if self._finite(match.name, W0_OI, W_OI) else None

    def _finite(self, name: str, *arrays: Array) -> bool:
        nan = sum(int(np.isnan(array).sum()) for array in arrays)
        infinite = sum(int(np.isinf(array).sum()) for array in arrays)
        if nan or infinite:
            self.skipped[name] = f"{nan} NaN and {infinite} infinite values"
        return not (nan or infinite)


def pair(before: Weights, after: Weights) -> Pairing:
    """Match two checkpoints of one architecture by the names of their tensors.

    Only headers are read here (and the contents of tensors that may be tied). A base model
    saved without its head has names without the first part (`encoder.` for `bert.encoder.`);
    that one prefix is added where it makes names match.

    Raises:
        InputError: another architecture, or nothing that matches.
    """
    _check_architecture(before, after)
    prefix_before, prefix_after = _prefixes(before.names(), after.names())
    # One config decides for both: a square (in, out) matrix would not be noticed otherwise.
    config = before.config if "model_type" in before.config else after.config
    left_all, left_skipped = find_matrices(before, config)
    right_all, right_skipped = find_matrices(after, config)
    left = {prefix_before + name: matrix for name, matrix in left_all.items()}
    right = {prefix_after + name: matrix for name, matrix in right_all.items()}
    skipped: dict[str, str] = {}
    for prefix, reasons in (
        (prefix_before, left_skipped | before.skipped),
        (prefix_after, right_skipped | after.skipped),
    ):
        skipped.update({prefix + name: reason for name, reason in reasons.items()})
    matches: list[Match] = []
    differing: list[str] = []
    for name, matrix in right.items():
        if name not in left:
            skipped[name] = "only in the tuned checkpoint"
            continue
        match = _match(name, left[name], matrix)
        if match is None:
            differing.append(name)
            skipped[name] = f"shape {list(left[name].shape)} before, {list(matrix.shape)} after"
        else:
            matches.append(match)
    skipped.update((name, "only in the pretrained checkpoint") for name in left.keys() - right)
    if not matches or len(differing) > len(matches):
        _refuse_unmatched(before, after, len(matches), differing, skipped)
    matches = _without_tied(matches, skipped)
    return Pairing(
        before=before,
        after=after,
        matches=matches,
        vectors=_vectors(before, after, prefix_before, prefix_after, skipped),
        skipped=skipped,
        flags=_flags(before, after, prefix_before, prefix_after, matches),
    )


def coarser(*dtypes: str) -> str:
    """Return the storage dtype of fewest significant bits; GGUF's quantisations come after all."""
    return max(dtypes, key=lambda dtype: _PRECISION.index(dtype) if dtype in _PRECISION else 99)


def is_vocabulary(module: str) -> bool:
    """Whether the rows of a module's weight are the tokens of a vocabulary, which may be resized.

    Args:
        module: its path; GGUF and Llama's own files call the head just "output".
    """
    return module == "output" or module.rpartition(".")[2] in _VOCABULARY


def _check_architecture(before: Weights, after: Weights) -> None:
    for key in _ARCHITECTURE:
        values = before.config.get(key), after.config.get(key)
        plain = all(isinstance(value, str | int) for value in values)
        if plain and values[0] != values[1]:
            raise InputError(
                f"{key} is {shown(values[0])} in {shown(before.path)} and {shown(values[1])} in "
                f"{shown(after.path)}; compare two checkpoints of one architecture"
            )


def _prefixes(before: list[str], after: list[str]) -> tuple[str, str]:
    """Return the prefix to put before each name of either checkpoint, both empty as a rule."""
    plain = len(set(before) & set(after))
    counts: Counter[tuple[str, str]] = Counter()
    for short, long, swap in ((before, after, False), (after, before, True)):
        names = set(short)
        for name in long:
            first, _, rest = name.partition(".")
            if rest in names:
                counts[("", first + ".") if swap else (first + ".", "")] += 1
    ranked = counts.most_common(2)
    if not ranked or ranked[0][1] <= plain:
        return "", ""
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        first, second = (shown("".join(prefixes)) for prefixes, _ in ranked)
        raise InputError(
            f"names match equally well with the prefix {first} and with {second}; "
            "save both checkpoints from one model class"
        )
    return ranked[0][0]


def _match(name: str, before: Matrix, after: Matrix) -> Match | None:
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


def _refuse_unmatched(
    before: Weights,
    after: Weights,
    matched: int,
    differing: list[str],
    skipped: dict[str, str],
) -> None:
    def some(names: list[str]) -> str:
        return ", ".join(shown(name, 60) for name in names[:4]) or "none"

    if differing:
        name = differing[0]
        raise InputError(
            f"{shown(before.path)} and {shown(after.path)} have different shapes in "
            f"{len(differing)} of {len(differing) + matched} matrices ({shown(name)}: "
            f"{skipped[name]}); compare two checkpoints of one architecture and size"
        )
    raise InputError(
        f"no matrix of {shown(before.path)} ({some(before.names())}) is in {shown(after.path)} "
        f"({some(after.names())}); compare two checkpoints of one architecture, both saved by "
        "save_pretrained"
    )


def _same(a: Matrix, b: Matrix) -> bool:
    """Whether two matrices of equal shape hold the same numbers, not all of them equal."""
    weights = a.weights
    if a.weights is not b.weights or a.shape != b.shape or a.storage_dtype != b.storage_dtype:
        return False
    rows = weights.shape(a.tensor)[0]
    few = max(1, min(rows, _SAMPLE // max(1, weights.shape(a.tensor)[-1])))
    start_a, start_b = (weights.read_rows(m.tensor, 0, few) for m in (a, b))
    if not np.array_equal(start_a, start_b):
        return False
    varied = False
    for block_a, block_b in zip(*(m.read_blocks(m.shape, _BLOCK) for m in (a, b)), strict=True):
        if not np.array_equal(block_a, block_b):
            return False
        varied = varied or bool(np.any(block_a != start_a.flat[0]))
    return varied


def _without_tied(matches: list[Match], skipped: dict[str, str]) -> list[Match]:
    """Leave out a vocabulary matrix whose numbers are another's in both checkpoints."""
    kept: list[Match] = []
    vocabulary: list[Match] = []
    for match in matches:
        if is_vocabulary(match.name):
            twin = next(
                (
                    other
                    for other in vocabulary
                    if _same(match.before, other.before) and _same(match.after, other.after)
                ),
                None,
            )
            if twin is not None:
                skipped[match.name] = f"the same as {shown(twin.name)} (tied), counted there"
                continue
            vocabulary.append(match)
        kept.append(match)
    return kept


def _vectors(
    before: Weights, after: Weights, prefix_before: str, prefix_after: str, skipped: dict[str, str]
) -> dict[str, tuple[str, str]]:
    left = {prefix_before + name: name for name in before.names() if len(before.shape(name)) < 2}
    right = {prefix_after + name: name for name in after.names() if len(after.shape(name)) < 2}
    vectors: dict[str, tuple[str, str]] = {}
    for name, tensor in right.items():
        if name not in left:
            skipped[name] = "only in the tuned checkpoint"
        elif before.shape(left[name]) != after.shape(tensor):
            shapes = f"{list(before.shape(left[name]))} before, {list(after.shape(tensor))} after"
            skipped[name] = f"shape {shapes}"
        else:
            vectors[name] = left[name], tensor
    skipped.update((name, "only in the pretrained checkpoint") for name in left.keys() - right)
    return vectors


def _flags(
    before: Weights, after: Weights, prefix_before: str, prefix_after: str, matches: list[Match]
) -> list[str]:
    flags = [f"before: {flag}" for flag in before.flags] + [
        f"after: {flag}" for flag in after.flags
    ]
    if prefix_before or prefix_after:
        shorter = "pretrained" if prefix_before else "tuned"
        prefix = prefix_before or prefix_after
        flags.append(f"names of the {shorter} checkpoint read with the prefix {shown(prefix)}")
    pairs = {(match.before.storage_dtype, match.after.storage_dtype) for match in matches}
    fine = {"float32", "float64"}
    # A W0 coarser than W may be where training began: then its differences are exact.
    only_before = {before for before, after in pairs if after in fine} - fine
    coarse = {coarser(*both) for both in pairs if both[1] not in fine or both[0] in fine} - fine
    if coarse:
        flags.append(
            f"stored in {', '.join(sorted(coarse))}: each difference (as of a merged adapter) "
            "carries rounding noise"
        )
    if only_before:
        flags.append(
            f"only before is stored in {', '.join(sorted(only_before))}: its rounding counts as "
            "noise where the differences have as much of it"
        )
    known = ("model_type", "gguf_architecture")  # GGUF is always (out, in)
    if not any(weights.config.get(key) for weights in (before, after) for key in known):
        flags.append("no config.json: orientation as stored, fused tensors left out")
    return flags
