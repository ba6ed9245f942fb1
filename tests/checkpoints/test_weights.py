"""A model is opened, its tensors are named, and rows are read alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_adapter, open_weights
from lowrank_study.errors import InputError


def test_several_unrelated_files_are_refused(write_model: Any) -> None:
    folder = write_model({"w": torch.ones(1)})
    write_model({"w": torch.ones(1)}, name="model.fp16.safetensors")
    with pytest.raises(InputError, match="2 weight files that aren't one numbered set"):
        open_weights(folder)


def test_a_missing_tensor_is_refused_with_the_existing_names(write_model: Any) -> None:
    with (
        open_weights(write_model({"w": torch.ones(1)})) as weights,
        pytest.raises(InputError, match="no tensor v; it has 1, such as w"),
    ):
        weights.read("v")


def test_a_path_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.safetensors.*found nothing"):
        open_weights(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_weights(tmp_path / "model.safetensors")
    for odd in ("a\0b", "a" * 5000, "a\nb", ""):
        for opener in (open_weights, open_adapter):
            with pytest.raises(InputError) as caught:
                opener(tmp_path / odd)
            assert str(caught.value).isprintable()
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match=r"not safetensors|truncated"):
        open_weights(tmp_path / "model.h5")


def test_rows_are_read_without_the_others(write_model: Any, rng: np.random.Generator) -> None:
    w = rng.standard_normal((5, 3)).astype(np.float32)
    with open_weights(write_model({"w": w, "x": np.array([7], np.float32)})) as weights:
        np.testing.assert_array_equal(weights.read_rows("w", 1, 4), w[1:4])
        np.testing.assert_array_equal(weights.read_rows("x", 0, 1), [7])
        assert weights.shape("w") == (5, 3)
        assert weights.dtype("w") == "float32"
        assert "w" in weights
        assert len(weights) == 2
        with pytest.raises(ValueError, match="rows 4:6 of 5"):
            weights.read_rows("w", 4, 6)
    weights.close()
    with pytest.raises(ValueError, match="is closed"):
        weights.read("w")


def test_a_git_lfs_pointer_is_named(sharded: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 26843545600\n"
    (sharded / "model-00001-of-00002.safetensors").write_text(pointer)
    with pytest.raises(InputError, match=r"is a git-lfs pointer.*`git lfs pull`"):
        open_weights(sharded)


def test_a_web_page_in_place_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("<!DOCTYPE html><html><body>login</body></html>")
    with pytest.raises(InputError, match=r"is a web page instead of weights.*/resolve/"):
        open_weights(tmp_path / "model.safetensors")


def test_mixed_dtypes_are_flagged(write_model: Any) -> None:
    path = write_model({"a": torch.ones(2, 2), "b": torch.ones(2, 2, dtype=torch.bfloat16)})
    with open_weights(path) as weights:
        assert weights.flags == ("mixed storage dtypes: bfloat16, float32",)


def test_rows_of_a_large_matrix_are_read_without_the_rest(write_raw: Any, entry: Any) -> None:
    rows, columns = 2**20, 2**10
    header = {"w": entry(0, rows * columns * 4, [rows, columns])}
    path = write_raw(header)
    with path.open("r+b") as file:
        start = path.stat().st_size
        file.truncate(start + rows * columns * 4)  # 4 GiB, sparse
        file.seek(start + 7 * columns * 4)
        file.write(np.float32(1.5).tobytes())
    with open_weights(path) as weights:
        part = weights.read_rows("w", 6, 9)
        assert part.shape == (3, columns)
        assert part[1, 0] == 1.5
        assert part.sum() == 1.5
