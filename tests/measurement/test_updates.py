"""Reading ahead changes nothing, and blocks give the spectra of whole matrices."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import (  # type: ignore[import-untyped, unused-ignore]
    threadpool_info,
    threadpool_limits,
)

from lowrank_study.checkpoints import Match, open_weights, pair, save_adapter
from lowrank_study.errors import InputError
from lowrank_study.measurement import adapters, pairs
from lowrank_study.measurement.adapters import OpenedAdapter
from lowrank_study.measurement.pairs import OpenedPair
from lowrank_study.measurement.read_ahead import ReadAhead
from lowrank_study.measurement.subjects import AdapterOnBase, CheckpointPair
from lowrank_study.spectra.spectrum import Spectrum, measure
from lowrank_study.spectra.updates import Update, update_of_match

Tensors = Mapping[str, torch.Tensor]


@pytest.fixture
def reader() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def test_exactly_one_item_is_read_ahead(reader: ThreadPoolExecutor) -> None:
    made: list[int] = []
    second_is_made = threading.Event()

    def source() -> Iterator[int]:
        for number in (1, 2, 3):
            made.append(number)
            if number == 2:
                second_is_made.set()
            yield number

    ahead = ReadAhead(source(), reader)
    assert next(ahead) == 1
    assert second_is_made.wait(timeout=10)
    assert made == [1, 2]
    assert list(ahead) == [2, 3]


def test_an_error_while_reading_ahead_is_raised_in_order(reader: ThreadPoolExecutor) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise InputError("the second is broken")

    ahead = ReadAhead(source(), reader)
    assert next(ahead) == 1
    with pytest.raises(InputError, match="the second is broken"):
        next(ahead)


SHAPES = {"wide": (6, 40), "tall": (40, 6), "square": (12, 12), "embed_tokens": (50, 8)}


def tensors(dtype: torch.dtype, *, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = {
        f"h.{name}.weight": torch.randn(shape, generator=random) for name, shape in SHAPES.items()
    }
    made["h.0.attn.c_attn.weight"] = torch.randn(8, 24, generator=random)
    made["h.0.mlp.c_fc.weight"] = torch.randn(8, 20, generator=random)
    made["h.conv.weight"] = torch.randn(5, 3, 2, 2, generator=random)
    made["h.mlp.experts.up"] = torch.randn(3, 7, 9, generator=random)
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def opened(folder: Path, before: Tensors, after: Tensors, stack: ExitStack) -> OpenedPair:
    for name, content in (("before", before), ("after", after)):
        (folder / name).mkdir()
        save_file(dict(content), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"model_type": "gpt2"}')
    subject = CheckpointPair(before=folder / "before", after=folder / "after")
    return OpenedPair(subject, stack, allow_pickle=False, prefix="")


def equal(found: Spectrum, expected: Spectrum) -> None:
    for field in fields(Spectrum):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "singular_values":
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(other, default=0.0))
        elif isinstance(one, float):
            assert one == pytest.approx(other, rel=1e-9, nan_ok=True), field.name
        else:
            assert one == other, field.name


@pytest.mark.parametrize("entries", [1, 17, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_of_any_size_give_the_same_spectra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, entries: int
) -> None:
    monkeypatch.setattr(pairs, "BLOCK_ENTRIES", entries)
    before = tensors(dtype, seed=0)
    after = {
        name: (tensor.float() + 0.1 * change.float()).to(dtype)
        for (name, tensor), change in zip(
            before.items(), tensors(torch.float32, seed=1).values(), strict=True
        )
    }
    # Rows and columns in which nothing changed, and a matrix in which nothing did.
    after["h.tall.weight"][3:30] = before["h.tall.weight"][3:30]
    after["h.embed_tokens.weight"][3:] = before["h.embed_tokens.weight"][3:]
    after["h.wide.weight"][:, 2] = before["h.wide.weight"][:, 2]
    after["h.square.weight"][:, 4:9] = before["h.square.weight"][:, 4:9]
    after["h.conv.weight"] = before["h.conv.weight"].clone()
    after["h.embed_tokens.weight"] = torch.cat([after["h.embed_tokens.weight"], torch.ones(4, 8)])
    after = {name: tensor.to(dtype) for name, tensor in after.items()}
    with ExitStack() as stack:
        subject = opened(tmp_path, before, after, stack)
        expected = [
            measure(update_of_match(*each, roles={}), method="gram")
            for each in subject.pairing.read_matrices()
        ]
        found = list(subject.measured(method="gram", vectors=False))
    assert len(found) == len(expected) == 12
    for (update, spectrum), other in zip(found, expected, strict=True):
        assert update is None, "it was read as a whole"
        equal(spectrum, other)


@pytest.mark.parametrize("begun", ["as stored", "finer"])
@pytest.mark.parametrize("rows", [2, 40])
def test_unchanged_rows_show_that_the_base_was_not_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, begun: str
) -> None:
    monkeypatch.setattr(pairs, "BLOCK_ENTRIES", 1000)
    random = torch.Generator().manual_seed(0)
    w0 = torch.randn(400, 30, generator=random)
    w = w0.bfloat16().float() if begun == "as stored" else w0.clone()
    w[:rows] += torch.randn(rows, 30, generator=random)
    with ExitStack() as stack:
        subject = opened(tmp_path, {"a.weight": w0.bfloat16()}, {"a.weight": w}, stack)
        ((match, W0_OI, W_OI),) = subject.pairing.read_matrices()
        update = update_of_match(match, W0_OI, W_OI, roles={})
        ((_, spectrum),) = subject.measured(method="gram", vectors=False)
    assert spectrum.storage_dtype == ("float32" if begun == "as stored" else "bfloat16")
    equal(spectrum, measure(update, method="gram"))


@pytest.mark.parametrize("place", [0, 39])
def test_a_nonfinite_entry_anywhere_leaves_its_matrix_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(pairs, "BLOCK_ENTRIES", 24)
    before, after = tensors(torch.float32, seed=0), tensors(torch.float32, seed=1)
    after["h.tall.weight"][place, 1] = float("nan")
    before["h.tall.weight"][20, :2] = torch.tensor([float("inf"), float("-inf")])
    with ExitStack() as stack:
        subject = opened(tmp_path, before, after, stack)
        found = list(subject.measured(method="gram", vectors=False))
    assert len(found) == 11
    assert subject.skipped["h.tall"] == "1 NaN and 2 infinite values"


@pytest.mark.parametrize(
    "changes", [{"method": "svd"}, {"vectors": True}, {"dtype": torch.float64}]
)
def test_analyses_that_need_the_whole_matrix_get_it(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"method": "gram", "vectors": False, "dtype": torch.float32}
    settings |= changes
    dtype = settings.pop("dtype")
    with ExitStack() as stack:
        subject = opened(tmp_path, tensors(dtype, seed=0), tensors(dtype, seed=1), stack)
        for update, spectrum in subject.measured(**settings):
            assert update is not None
            equal(spectrum, measure(update, method=settings["method"]))


def test_values_near_the_end_of_float32_neither_overflow_nor_vanish(tmp_path: Path) -> None:
    large, small = torch.full((3, 4), 1e38), torch.full((4, 3), 1e-38)
    before = {"large.weight": large, "small.weight": small, "other.weight": torch.eye(4)}
    after = {name: -tensor for name, tensor in before.items()}
    with ExitStack() as stack:
        subject = opened(tmp_path, before, after, stack)
        found = [s for _, s in subject.measured(method="gram", vectors=False)]
    sigma = {spectrum.module: spectrum.singular_values[0] for spectrum in found}
    # 2 * 1e38 * sqrt(12), of what float32 makes of 1e38
    for name, tensor in before.items():
        expected = 2 * np.linalg.norm(tensor.double().numpy(), 2)
        assert sigma[name.removesuffix(".weight")] == pytest.approx(expected, rel=1e-12)


def test_a_block_is_all_that_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = Match.read_blocks

    def recorded(self: Match, entries: int) -> Iterator[Any]:
        for block in read(self, entries):
            sizes.append(block[1].size)
            yield block

    monkeypatch.setattr(Match, "read_blocks", recorded)
    monkeypatch.setattr(pairs, "BLOCK_ENTRIES", 24)
    with ExitStack() as stack:
        first, second = tensors(torch.bfloat16, seed=0), tensors(torch.bfloat16, seed=1)
        subject = opened(tmp_path, first, second, stack)
        monkeypatch.setattr("lowrank_study.checkpoints.Weights.read", lambda *_: 1 / 0)
        assert len(list(subject.measured(method="gram", vectors=False))) == 12
    assert max(sizes) == 24


def test_every_kind_of_matrix_is_read_in_parts_exactly(tmp_path: Path) -> None:
    with ExitStack() as stack:
        before, after = tensors(torch.float16, seed=0), tensors(torch.bfloat16, seed=1)
        subject = opened(tmp_path, before, after, stack)
        for match in subject.pairing.matches:
            whole = match.read()
            tall = match.shape[0] >= match.shape[1]
            for matrix, expected in zip((match.before, match.after), whole, strict=True):
                assert matrix.reads_parts
                part = matrix.read_part((1, 4), (0, 3))
                np.testing.assert_array_equal(part, expected[1:4, 0:3])
                blocks = list(matrix.read_blocks(match.shape, 20))
                joined = np.concatenate(blocks)
                np.testing.assert_array_equal(joined if tall else joined.T, expected)


def test_formats_without_partial_reads_are_sliced_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "BLOCK_ENTRIES", 40)
    name = "h.0.attention.query_key_value"  # heads in turns: each has its query, key and value
    for folder, seed in (("before", 0), ("after", 1)):
        random = torch.Generator().manual_seed(seed)
        content = {
            f"{name}.weight": torch.randn(24, 8, generator=random),
            "h.0.dense.weight": torch.randn(30, 8, generator=random),
        }
        (tmp_path / folder).mkdir()
        torch.save(content, tmp_path / folder / "pytorch_model.bin")
        config = '{"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 8}'
        (tmp_path / folder / "config.json").write_text(config)
    subject = CheckpointPair(before=tmp_path / "before", after=tmp_path / "after")
    with ExitStack() as stack:
        subject_opened = OpenedPair(subject, stack, allow_pickle=True, prefix="")
        pairing = subject_opened.pairing
        assert not any(match.before.reads_parts for match in pairing.matches)
        expected = [
            measure(update_of_match(*each, roles={}), method="gram")
            for each in pairing.read_matrices()
        ]
        found = list(subject_opened.measured(method="gram", vectors=False))
    assert [spectrum.module for _, spectrum in found] == [
        *(f"{name}.{part}" for part in ("query", "key", "value")),
        "h.0.dense",
    ]
    for (_, spectrum), other in zip(found, expected, strict=True):
        equal(spectrum, other)


def test_a_tied_vocabulary_is_recognised_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowrank_study.checkpoints.pairing.tied._BLOCK", 8)
    for name, seed in (("a", 0), ("b", 1)):
        both = tensors(torch.float32, seed=seed)
        both["lm_head.weight"] = both["h.embed_tokens.weight"].clone()
        both["untied.embed_out.weight"] = both["h.embed_tokens.weight"].clone()
        both["untied.embed_out.weight"][-1, -1] += 1
        save_file(both, tmp_path / name)
    with open_weights(tmp_path / "a") as before, open_weights(tmp_path / "b") as after:
        pairing = pair(before, after)
    assert "tied" in pairing.skipped["lm_head"]
    assert "untied.embed_out" in {match.name for match in pairing.matches}


def test_thin_factors_are_multiplied_by_one_thread_and_dense_updates_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(12, 10)
    save_adapter(
        tmp_path / "adapter",
        factors={"q": (torch.randn(2, 10), torch.randn(12, 2))},
        saved_modules={"v.weight": weight + 1},
        modules_to_save=["v"],
        rank=2,
        alpha=2.0,
        use_rslora=False,
        dropout=0.0,
        target_modules=["q"],
        base_model_name="base",
        task_type=None,
    )
    base = {"q.weight": weight, "v.weight": weight.clone()}
    save_file(base, tmp_path / "base.safetensors")
    threads: dict[str, set[int]] = {}

    def recorded(update: Update, *, method: Any) -> Spectrum:
        found = threadpool_info()
        threads[update.name] = {p["num_threads"] for p in found if p["user_api"] == "blas"}
        return measure(update, method=method)

    monkeypatch.setattr(adapters, "measure", recorded)
    subject = AdapterOnBase(adapter=tmp_path / "adapter", base=tmp_path / "base.safetensors")
    with threadpool_limits(2, user_api="blas"), ExitStack() as stack:
        subject_opened = OpenedAdapter(subject, stack, allow_pickle=False, prefix="")
        assert len(list(subject_opened.measured(method="gram", vectors=False))) == 2
    assert threads == {"q": {1}, "v": {2}}
