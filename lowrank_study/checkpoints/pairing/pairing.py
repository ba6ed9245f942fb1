"""Two checkpoints of one model, matrix by matrix, with everything left out named.

    with open_weights("before") as before, open_weights("after") as after:
        pairing = pair(before, after)
        for match, W0_OI, W_OI in pairing.read_matrices():
            delta_OI = W_OI - W0_OI
        pairing.skipped        # {"lm_head": "the same as model.embed_tokens (tied), ..."}
        pairing.left_out()     # the share of each checkpoint that isn't compared

Axis suffixes: O out features, I in features.
"""

from collections import Counter
from collections.abc import Iterator
from math import prod

import numpy as np

from lowrank_study.checkpoints.formats.source_file import shown
from lowrank_study.checkpoints.formats.tensors import Array
from lowrank_study.checkpoints.matrices.finding import Matrix
from lowrank_study.checkpoints.pairing.architecture import shared_config
from lowrank_study.checkpoints.pairing.match import Match, coarser, is_head
from lowrank_study.checkpoints.pairing.renames import PairedNames, paired_names
from lowrank_study.checkpoints.pairing.sides import (
    ALONE,
    Side,
    matched,
    matched_others,
    matched_tied,
    take_out_tied,
    without_tied,
)
from lowrank_study.checkpoints.pairing.unpaired import SIDES, Unpaired, left_out_parts
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut


class Pairing:
    """The matrices and vectors two checkpoints share, and what was left out."""

    def __init__(
        self,
        *,
        before: Weights,
        after: Weights,
        matches: list[Match],
        vectors: dict[str, tuple[str, str]],
        unpaired: list[Unpaired],
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
        """Matched tensors that are not matrices: name to (tensor before, tensor after)."""
        self.skipped = skipped
        """What was left out, with the reason; `read_matrices` adds matrices with NaN or Inf."""
        self.flags = flags
        """What a report has to say of this pair, one sentence each."""
        self._unpaired = unpaired
        self._broken: set[str] = set()

    def left_out_matrices(self) -> int:
        """Return how many matrices of the larger checkpoint aren't compared."""
        alone = Counter(item.side for item in self._unpaired if item.is_matrix)
        broken = sum(match.name in self._broken for match in self.matches)
        return max(alone.values(), default=0) + broken

    def left_out(self) -> list[LeftOut]:
        """Return which part of each checkpoint isn't compared, and why.

        Matrices with NaN or Inf are included once they have been read.
        """
        parts: list[LeftOut] = []
        for index, side in enumerate(SIDES):
            lost = [item for item in self._unpaired if item.side == side]
            compared = 0
            counted: set[Matrix] = set()
            for match in sorted(self.matches, key=lambda match: match.name in self._broken):
                matrix = (match.before, match.after)[index]
                if matrix in counted:  # a tied embedding is the W0 of the head too
                    continue
                counted.add(matrix)
                rows, columns = matrix.shape
                more = (rows - match.shape[0], columns)
                lost.append(Unpaired.of(side, match.name, more, _ROWS, is_matrix=False))
                if match.name in self._broken:
                    lost.append(Unpaired.of(side, match.name, match.shape, _BROKEN, is_matrix=True))
                else:
                    compared += prod(match.shape)
            for name, tensors in self.vectors.items():
                shape = (self.before, self.after)[index].shape(tensors[index])
                if name in self._broken:
                    lost.append(Unpaired.of(side, name, shape, _BROKEN, is_matrix=False))
                else:
                    compared += prod(shape)
            parts += left_out_parts(lost, side=side, compared=compared)
        return parts

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

    def refuse_partial(self) -> None:
        """Refuse a run's own checkpoint where a matrix of the base has another shape now."""
        for item in self._unpaired:
            if item.is_matrix and item.side == "after" and item.why not in ALONE.values():
                raise InputError(
                    f"{shown(self.after.path)}: {shown(item.name)}: {item.why}; train the run again"
                )

    def leave_out(self, name: str, reason: str) -> None:
        """Leave out a matched matrix or vector with unusable numbers."""
        self.skipped[name] = reason
        self._broken.add(name)

    def _finite(self, name: str, *arrays: Array) -> bool:
        nan = sum(int(np.isnan(array).sum()) for array in arrays)
        infinite = sum(int(np.isinf(array).sum()) for array in arrays)
        if nan or infinite:
            self.leave_out(name, f"{nan} NaN and {infinite} infinite values")
        return not (nan or infinite)


_ROWS = "rows that only this checkpoint has"
_BROKEN = "NaN or infinite values in one checkpoint or both"


def pair(before: Weights, after: Weights) -> Pairing:
    """Match two checkpoints of one architecture by the names of their tensors.

    This reads only headers (and the contents of tensors that may be tied). Names are compared in
    a form that is the same for all versions of the model's code (see `renames`). A fused tensor is
    split if the other file stores its parts separately.

    Raises:
        InputError: different architectures, an unmerged adapter, or no matching matrix.
    """
    config = shared_config(before, after)
    names = paired_names(before.names(), after.names())
    left = Side("before", before, names.before, names.prefix_before, config)
    right = Side("after", after, names.after, names.prefix_after, config)
    matches, differing = matched(left, right)
    if not matches or len(differing) > 2 * len(matches):
        _refuse_unmatched(before, after, len(matches), differing)
    matches, tied = without_tied(matches)
    for side in (left, right):
        tied |= take_out_tied(side, matches)
    matches += matched_tied(left, right, matches)
    order = {name: place for place, name in enumerate(after.names())}
    matches.sort(key=lambda match: order[match.after.tensor])
    vectors, differing_vectors = matched_others(left, right)
    unpaired = [*left.alone(), *right.alone(), *differing, *differing_vectors]
    skipped = {item.name: item.why for item in unpaired} | tied
    for side in (left, right):
        skipped |= {side.shown(name): reason for name, reason in side.ignored.items()}
    return Pairing(
        before=before,
        after=after,
        matches=matches,
        vectors=vectors,
        unpaired=unpaired,
        skipped=skipped,
        flags=_flags(before, after, names, matches),
    )


def _refuse_unmatched(
    before: Weights, after: Weights, matched: int, differing: list[Unpaired]
) -> None:
    def some(names: list[str]) -> str:
        return ", ".join(shown(name, 60) for name in names[:4]) or "none"

    if differing:
        first, count = differing[0], len(differing) // 2
        raise InputError(
            f"{shown(before.path)} and {shown(after.path)} have different shapes in "
            f"{count} of {count + matched} matrices ({shown(first.name)}: {first.why}); "
            "compare two checkpoints of one architecture and size"
        )
    raise InputError(
        f"no matrix of {shown(before.path)} ({some(before.names())}) is in {shown(after.path)} "
        f"({some(after.names())}); compare two checkpoints of one architecture, both saved by "
        "save_pretrained"
    )


def _flags(before: Weights, after: Weights, names: PairedNames, matches: list[Match]) -> list[str]:
    flags = [f"before: {flag}" for flag in before.flags] + [
        f"after: {flag}" for flag in after.flags
    ]
    if names.prefix_before or names.prefix_after:
        shorter = "pretrained" if names.prefix_before else "tuned"
        prefix = names.prefix_before or names.prefix_after
        flags.append(f"names of the {shorter} checkpoint read with the prefix {shown(prefix)}")
    flags += _renamed([match for match in matches if not _is_tied(match)], names)
    for match in matches:
        if _is_tied(match):
            there = ("tuned", match.after.name)
            if match.name == names.prefix_after + match.after.name:
                there = ("pretrained", match.before.name)
            flags.append(
                f"{shown(match.name)} is tied in the {there[0]} checkpoint, where it is "
                f"{shown(there[1])}"
            )
    flags += _notes(matches)
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
        flags.append("no config.json: orientation as stored, fused tensors not split")
    return flags


def _is_tied(match: Match) -> bool:
    return is_head(match.before.name) != is_head(match.after.name)


def _renamed(matches: list[Match], names: PairedNames) -> list[str]:
    renamed = [
        match
        for match in matches
        if names.prefix_before + match.before.name != names.prefix_after + match.after.name
    ]
    if not renamed:
        return []
    before, after = renamed[0].before.name, renamed[0].after.name
    return [
        f"{len(renamed)} {'matrix has' if len(renamed) == 1 else 'matrices have'} another name in "
        "the tuned checkpoint, such as "
        f"{shown(before)}, which is {shown(after)} there"
    ]


def _notes(matches: list[Match]) -> list[str]:
    """Return notes on the matrices that are not one linear map."""
    noted: dict[str, list[str]] = {}
    for match in matches:
        for note in {match.before.note, match.after.note} - {""}:
            noted.setdefault(note, []).append(match.name)
    return [
        f"{note} ({len(modules)}, such as {shown(modules[0])})" for note, modules in noted.items()
    ]
