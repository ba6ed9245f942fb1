"""Pair two checkpoints of one model matrix by matrix, and account for everything left out.

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
from dataclasses import dataclass
from math import prod

import numpy as np

from lowrank_study.checkpoints.formats import Array, coarser, shown
from lowrank_study.checkpoints.matrices import Matrix
from lowrank_study.checkpoints.names import is_head
from lowrank_study.checkpoints.pairing.architecture import shared_config
from lowrank_study.checkpoints.pairing.keys import PairedNames, paired_names
from lowrank_study.checkpoints.pairing.match import Match
from lowrank_study.checkpoints.pairing.sides import ALONE, Side, matched, matched_others
from lowrank_study.checkpoints.pairing.tied import matched_tied, take_out_tied, without_tied
from lowrank_study.checkpoints.pairing.unpaired import SIDES, Unpaired, left_out_parts
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError
from lowrank_study.left_out import LeftOut

_ROWS = "rows that only this checkpoint has"
_BROKEN = "NaN or infinite values in one checkpoint or both"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairing:
    """The matrices and vectors two checkpoints share, and what was left out."""

    before: Weights
    after: Weights
    matches: list[Match]
    """The matched matrices, in the order of the tuned checkpoint."""
    vectors: dict[str, tuple[str, str]]
    """Matched tensors that are not matrices: name to (tensor before, tensor after)."""
    unpaired: list[Unpaired]
    """Tensors without a counterpart of the same shape."""
    broken: set[str]
    """Names of matrices and vectors with NaN or Inf, as far as they have been read."""
    skipped: dict[str, str]
    """Names of left-out tensors with the reason; reading adds those with NaN or Inf."""
    flags: list[str]
    """Remarks for the report on this pair, one sentence each."""

    def left_out_matrices(self) -> int:
        """Return how many matrices of the larger checkpoint aren't compared."""
        alone = Counter(item.side for item in self.unpaired if item.is_matrix)
        broken = sum(match.name in self.broken for match in self.matches)
        return max(alone.values(), default=0) + broken

    def left_out(self) -> list[LeftOut]:
        """Return which part of each checkpoint isn't compared, and why.

        Matrices with NaN or Inf are included once they have been read.
        """
        return [part for index in range(len(SIDES)) for part in self._left_out_of(index)]

    def _left_out_of(self, index: int) -> list[LeftOut]:
        side = SIDES[index]
        lost = [item for item in self.unpaired if item.side == side]
        compared = 0
        counted: set[Matrix] = set()
        for match in sorted(self.matches, key=lambda match: match.name in self.broken):
            matrix = (match.before, match.after)[index]
            if matrix in counted:  # a tied embedding is also the W0 of the head
                continue
            counted.add(matrix)
            rows, columns = matrix.shape
            more = (rows - match.shape[0], columns)
            lost.append(Unpaired.of(side, match.name, more, _ROWS, is_matrix=False))
            if match.name in self.broken:
                lost.append(Unpaired.of(side, match.name, match.shape, _BROKEN, is_matrix=True))
            else:
                compared += prod(match.shape)
        for name, tensors in self.vectors.items():
            shape = (self.before, self.after)[index].shape(tensors[index])
            if name in self.broken:
                lost.append(Unpaired.of(side, name, shape, _BROKEN, is_matrix=False))
            else:
                compared += prod(shape)
        return left_out_parts(lost, side=side, compared=compared)

    def read_matrices(self) -> Iterator[tuple[Match, Array, Array]]:
        """Yield (match, W0_OI, W_OI) one at a time, and leave out matrices with NaN or Inf."""
        for match in self.matches:
            if (both := self.read(match)) is not None:
                yield match, *both

    def read_vectors(self) -> Iterator[tuple[str, Array, Array]]:
        """Yield (name, before, after) for vectors and scalars, and leave out those with NaN."""
        for name, (tensor_before, tensor_after) in self.vectors.items():
            w0, w = self.before.read(tensor_before), self.after.read(tensor_after)
            if self._finite(name, w0, w):
                yield name, w0, w

    def read(self, match: Match) -> tuple[Array, Array] | None:
        """Return (W0_OI, W_OI) of a match, or None if it has NaN or Inf and is left out."""
        W0_OI, W_OI = match.read()
        return (W0_OI, W_OI) if self._finite(match.name, W0_OI, W_OI) else None

    def refuse_partial(self) -> None:
        """Refuse a run's own checkpoint if the shape of a matrix differs from the base's."""
        for item in self.unpaired:
            if item.is_matrix and item.side == "after" and item.why not in ALONE.values():
                raise InputError(
                    f"{shown(self.after.path)}: {shown(item.name)}: {item.why}; train the run again"
                )

    def leave_out(self, name: str, reason: str) -> None:
        """Leave out a matched matrix or vector with unusable numbers."""
        self.skipped[name] = reason
        self.broken.add(name)

    def _finite(self, name: str, *arrays: Array) -> bool:
        nan = sum(int(np.isnan(array).sum()) for array in arrays)
        infinite = sum(int(np.isinf(array).sum()) for array in arrays)
        if nan or infinite:
            self.leave_out(name, f"{nan} NaN and {infinite} infinite values")
        return not (nan or infinite)


def pair(before: Weights, after: Weights) -> Pairing:
    """Match two checkpoints of one architecture by the names of their tensors.

    This reads only headers, and the contents of tensors that may be tied. A fused tensor is
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
        raise _unmatched(before, after, len(matches), differing)
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
        broken=set(),
        skipped=skipped,
        flags=_flags(before, after, names, matches),
    )


def _unmatched(
    before: Weights, after: Weights, matched: int, differing: list[Unpaired]
) -> InputError:
    if differing:
        first, count = differing[0], len(differing) // 2
        return InputError(
            f"{shown(before.path)} and {shown(after.path)} have different shapes in "
            f"{count} of {count + matched} matrices ({shown(first.name)}: {first.why}); "
            "compare two checkpoints of one architecture and size"
        )

    def some(weights: Weights) -> str:
        return ", ".join(shown(name, 60) for name in weights.names()[:4]) or "none"

    return InputError(
        f"no matrix of {shown(before.path)} ({some(before)}) is in {shown(after.path)} "
        f"({some(after)}); compare two checkpoints of one architecture, both saved by "
        "save_pretrained"
    )


def _flags(before: Weights, after: Weights, names: PairedNames, matches: list[Match]) -> list[str]:
    flags = [
        *(f"before: {flag}" for flag in before.flags),
        *(f"after: {flag}" for flag in after.flags),
        *_name_flags(names, matches),
        *_notes(matches),
        *_precision_flags(matches),
    ]
    known = ("model_type", "gguf_architecture")  # GGUF is always (out, in)
    if not any(weights.config.get(key) for weights in (before, after) for key in known):
        flags.append("no config.json: orientation as stored, fused tensors not split")
    return flags


def _name_flags(names: PairedNames, matches: list[Match]) -> Iterator[str]:
    """Yield remarks on prefixes, renamed matrices and tied vocabularies."""
    if prefix := names.prefix_before or names.prefix_after:
        shorter = "pretrained" if names.prefix_before else "tuned"
        yield f"names of the {shorter} checkpoint read with the prefix {shown(prefix)}"
    tied = [match for match in matches if is_head(match.before.name) != is_head(match.after.name)]
    renamed = [
        match
        for match in matches
        if match not in tied
        and names.prefix_before + match.before.name != names.prefix_after + match.after.name
    ]
    if renamed:
        first = renamed[0]
        yield (
            f"{len(renamed)} {'matrix has' if len(renamed) == 1 else 'matrices have'} another name "
            f"in the tuned checkpoint, such as {shown(first.before.name)}, which is "
            f"{shown(first.after.name)} there"
        )
    for match in tied:
        where, name = "tuned", match.after.name
        if match.name == names.prefix_after + match.after.name:
            where, name = "pretrained", match.before.name
        yield f"{shown(match.name)} is tied in the {where} checkpoint, where it is {shown(name)}"


def _notes(matches: list[Match]) -> list[str]:
    """Return notes on the matrices that are not one linear map."""
    noted: dict[str, list[str]] = {}
    for match in matches:
        for note in {match.before.note, match.after.note} - {""}:
            noted.setdefault(note, []).append(match.name)
    return [
        f"{note} ({len(modules)}, such as {shown(modules[0])})" for note, modules in noted.items()
    ]


def _precision_flags(matches: list[Match]) -> Iterator[str]:
    """Yield remarks on coarse storage dtypes.

    If only W0 is stored coarsely, training may have started there, and then differences are exact.
    """
    pairs = {(match.before.storage_dtype, match.after.storage_dtype) for match in matches}
    fine = {"float32", "float64"}
    only_before = {before for before, after in pairs if after in fine} - fine
    coarse = {coarser(*both) for both in pairs if both[1] not in fine or both[0] in fine} - fine
    if coarse:
        yield (
            f"stored in {', '.join(sorted(coarse))}: each difference (as of a merged adapter) "
            "carries rounding noise"
        )
    if only_before:
        yield (
            f"only before is stored in {', '.join(sorted(only_before))}: its rounding counts as "
            "noise, unless the differences show that training began from the stored weights"
        )
