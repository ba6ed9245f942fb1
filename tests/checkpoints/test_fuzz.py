"""Damaged weight files are refused, or read as the libraries read them."""

import io
import json
import warnings
from pathlib import Path

import gguf
import numpy as np
import peft  # noqa: F401  # its import would count as the time of the first adapter
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from lowrank_study.checkpoints import find_matrices, open_weights, pair
from lowrank_study.checkpoints.names import strip_name
from tests.checkpoints.fuzzing import (
    Change,
    changes,
    check_as_library,
    damaged,
    fuzzed,
    record,
    refused_or,
)

__all__ = ["record"]


def read_all(path: Path, *, allow_pickle: bool = False) -> dict[str, np.ndarray]:
    with open_weights(path, allow_pickle=allow_pickle) as weights:
        matrices, _ = find_matrices(weights)
        for matrix in matrices.values():
            assert matrix.read().shape == matrix.shape
        return {weights.info(name).name: weights.read(name) for name in weights.names()}


torch.manual_seed(0)


MODEL = save(
    {
        "embed.weight": torch.randn(5, 4),
        "h.0.attn.c_attn.weight": torch.randn(4, 12).half(),
        "h.0.q.weight": torch.randn(4, 4).bfloat16(),
        "experts.w": torch.randn(2, 3, 4).double(),
        "bias": torch.randn(4),
        "ids": torch.arange(4),
    },
    metadata={"format": "pt"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "config.json").write_text('{"model_type": "gpt2", "n_head": 2}')
    return path


@fuzzed(made=st.lists(changes(), max_size=4))
def test_a_damaged_safetensors_file(folder: Path, made: list[Change]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damaged(MODEL, made))
    found = refused_or(lambda: read_all(path))
    assert made or found is not None
    if found is None:
        return
    check_as_library(path, found)


def saved_by_torch(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    state = {"h.0.q.weight": torch.randn(4, 4).bfloat16(), "bias": torch.randn(4)}
    torch.save({"state_dict": state, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


PICKLES = [saved_by_torch(zipped=True), saved_by_torch(zipped=False)]


@fuzzed(whole=st.sampled_from(PICKLES), made=st.lists(changes(), max_size=3))
def test_a_damaged_pytorch_file(folder: Path, whole: bytes, made: list[Change]) -> None:
    path = folder / "pytorch_model.bin"
    path.write_bytes(damaged(whole, made))
    found = refused_or(lambda: read_all(path, allow_pickle=True))
    assert made or found is not None
    if found is None or path.read_bytes()[:8] == MODEL[:8]:
        return
    loaded = torch.load(
        path, map_location="cpu", weights_only=True, mmap=path.read_bytes()[:1] == b"P"
    )
    expected = {strip_name(name): value for name, value in loaded.get("state_dict", loaded).items()}
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name].detach().double().numpy())


SPACE = MODEL.index(b"{"), int.from_bytes(MODEL[:8], "little")


@fuzzed(made=st.lists(changes(), min_size=1, max_size=2))
def test_a_damaged_header_of_the_right_length(folder: Path, made: list[Change]) -> None:
    path = folder / "header.safetensors"
    start, length = SPACE
    header = damaged(MODEL[start : start + length], made)
    path.write_bytes(len(header).to_bytes(8, "little") + header + MODEL[start + length :])
    found = refused_or(lambda: read_all(path))
    if found is None:
        return
    check_as_library(path, found)


@pytest.fixture(scope="module")
def whole_gguf(folder: Path) -> bytes:
    path = folder / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    rng = np.random.default_rng(0)
    for name, kind in (("a", "Q4_1"), ("b", "F32"), ("c", "Q8_0"), ("d", "F16"), ("e", "Q4_K")):
        quantisation = gguf.GGMLQuantizationType[kind]
        rows, columns = (1, 256) if kind == "Q4_K" else (3, 32)
        if kind == "Q4_K":
            block = rng.integers(0, 256, (rows, 144), dtype=np.uint8)
            block[:, :4] = np.frombuffer(np.array([0.5, 0.25], np.float16).tobytes(), np.uint8)
        else:
            value = rng.standard_normal((rows, columns)).astype(np.float32)
            block = gguf.quantize(value, quantisation)
        writer.add_tensor(f"{name}.weight", block, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    path.unlink()
    return data


@fuzzed(made=st.lists(changes(), max_size=4))
def test_a_damaged_gguf_file(folder: Path, whole_gguf: bytes, made: list[Change]) -> None:
    path = folder / "model.gguf"
    path.write_bytes(damaged(whole_gguf, made))
    found = refused_or(lambda: read_all(path))
    assert made or found is not None
    if found is None or path.read_bytes()[:4] != b"GGUF":
        return
    try:
        tensors = gguf.GGUFReader(path).tensors
    except Exception:  # the library is stricter about settings that aren't read here
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tensor in tensors:
            if tensor.name in found:
                expected = gguf.dequantize(tensor.data, tensor.tensor_type)
                value = found[tensor.name]
                if tensor.tensor_type.name in ("BF16", "F64"):
                    continue  # returned by the library as bytes
                np.testing.assert_array_equal(value.reshape(expected.shape), expected)


SHARDS = {
    "s1.safetensors": {"a": torch.ones(3, 4).to(torch.float8_e4m3fn), "a_scale": torch.ones(2, 2)},
    "s2.safetensors": {"b": torch.ones(2, 2)},
}


WEIGHT_MAP = {name: shard for shard, tensors in SHARDS.items() for name in tensors}


INDEX = json.dumps({"metadata": {}, "weight_map": WEIGHT_MAP})


BLOCKS = {"quant_method": "fp8", "weight_block_size": [2, 2]}


SHARDED = json.dumps({"model_type": "gpt2", "n_head": 2, "quantization_config": BLOCKS})


@fuzzed(made=st.lists(changes(), max_size=3))
def test_a_damaged_index_or_config(folder: Path, made: list[Change]) -> None:
    path = folder / "sharded"
    path.mkdir(exist_ok=True)
    for shard, tensors in SHARDS.items():
        if not (path / shard).exists():
            (path / shard).write_bytes(save(tensors))
    (path / "model.safetensors.index.json").write_bytes(damaged(INDEX.encode(), made))
    (path / "config.json").write_bytes(damaged(SHARDED.encode(), made))

    def read() -> list[str]:
        with open_weights(path) as before, open_weights(path) as after:
            return [match.name for match, _, _ in pair(before, after).read_matrices()]

    found = refused_or(read)
    assert made or found is not None
    assert found in (None, ["a", "b"])
