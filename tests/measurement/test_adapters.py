"""Adapters of all formats are measured in the same way as by the command."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError
from lowrank_study.measurement.records import Measurement
from lowrank_study.measurement.request import measure_request, read_request
from lowrank_study.reporting.spectra_report.findings import left_out_of

torch.manual_seed(0)
A, B = torch.randn(4, 16), torch.randn(16, 4)
SIGMA = torch.linalg.svdvals(B.double() @ A.double()).numpy()[:4]


def measured(told: list[str], **given: Any) -> Measurement:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return measure_request(
        read_request(composed("measure_spectra") | plain),
        on_progress=lambda step: told.append(step.name),
        on_left_out=told.extend,
    )


def saved(
    path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str] | None = None
) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path, metadata=header)
    return path


def in_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", A.numpy())
    writer.add_tensor("blk.0.attn_q.weight.lora_b", B.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def in_mlx(folder: Path) -> Path:
    saved(folder / "adapters.safetensors", {"layers.0.q.lora_a": A.T, "layers.0.q.lora_b": B.T})
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


KOHYA = {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B}


@pytest.mark.parametrize("layout", ["gguf", "mlx", "kohya", "diffusers"])
def test_the_singular_values_are_those_of_the_scaled_product(tmp_path: Path, layout: str) -> None:
    told: list[str] = []
    match layout:
        case "gguf":
            path = in_gguf(tmp_path / "lora.gguf")
        case "mlx":
            path = in_mlx(tmp_path / "mlx")
        case "kohya":
            header = {"ss_network_alpha": "8", "ss_network_dim": "4"}
            path = saved(tmp_path / "kohya.safetensors", KOHYA, header)
        case _:
            tensors = {"transformer.q.lora_A.weight": A, "transformer.q.lora_B.weight": B}
            tensors["transformer.q.alpha"] = torch.tensor(8)
            path = saved(tmp_path / "diffusers.safetensors", tensors)
    found = measured(told, adapter=path)
    (matrix,) = found.matrices
    np.testing.assert_allclose(matrix.spectrum.singular_values[:4], 2 * SIGMA, rtol=1e-6)
    assert (found.left_out, found.assumed) == ([], [])
    # the same file as the other update: one direction beside its own
    again = measured([], adapter=path, other=path)
    assert again.matrices[0].similarity is not None


def test_26_a_missing_alpha_is_reported_first(tmp_path: Path) -> None:
    told: list[str] = []
    found = measured(told, adapter=saved(tmp_path / "kohya.safetensors", KOHYA))
    assert told[0].startswith("no alpha for any module (1 of 1): taken as their rank")
    assert left_out_of(found)[0].startswith("No alpha for any module")
    assert found.left_out == []


def test_unused_parts_of_an_adapter_are_reported_first(tmp_path: Path) -> None:
    tensors = KOHYA | {f"lora_unet_q.{part}": torch.tensor(4.0) for part in ("alpha",)}
    small = saved(tmp_path / "small.safetensors", tensors | {"emb": torch.ones(5)})
    told: list[str] = []
    found = measured(told, adapter=small)
    assert told[0].startswith("left out: 5 of 134 parameters of adapter (3.7 %)")
    assert [part.count for part in found.left_out] == [5]
    large = saved(tmp_path / "large.safetensors", tensors | {"emb": torch.ones(50)})
    with pytest.raises(InputError, match=r"50 of 179 parameters of adapter.*allow_partial=true"):
        measured([], adapter=large)
    assert len(measured([], adapter=large, allow_partial=True).matrices) == 1


def test_29_a_tied_head_is_compared_with_its_w0(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    factors = {"lm_head.lora_A.weight": A, "lm_head.lora_B.weight": B}
    saved(folder / "adapter_model.safetensors", factors)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    )
    base = saved(tmp_path / "base.safetensors", {"model.embed_tokens.weight": torch.randn(16, 16)})
    found = measured([], adapter=folder, base=base, compare_with_base=True)
    assert [matrix.spectrum.module for matrix in found.matrices] == ["lm_head"]
    assert "lm_head is tied: its W0 is model.embed_tokens.weight" in found.flags
    assert found.matrices[0].intruder_cosines
