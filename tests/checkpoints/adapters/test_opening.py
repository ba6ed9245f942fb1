"""A path is recognised as an adapter of a format, as several adapters, or as something else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import open_adapter
from lowrank_study.errors import InputError

FACTORS = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)}
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def test_a_folder_of_several_adapters_names_them(tmp_path: Path, write_adapter: Any) -> None:
    for name in ("second", "first"):
        write_adapter(FACTORS, PLAIN, folder=f"all/{name}")
    with pytest.raises(InputError) as caught:
        open_adapter(tmp_path / "all")
    assert "holds 2 adapters in separate folders (first, second); give one" in str(caught.value)
    assert str(caught.value).endswith("all/first")
    for given in ("first", "first/adapter_config.json", "first/adapter_model.safetensors"):
        with open_adapter(tmp_path / "all" / given) as adapter:
            assert adapter.modules() == ["q"]


def test_an_adapter_beside_the_one_that_is_read_is_mentioned(
    tmp_path: Path, write_adapter: Any
) -> None:
    write_adapter(FACTORS, PLAIN, folder="all")
    write_adapter(FACTORS, PLAIN, folder="all/critic")
    with open_adapter(tmp_path / "all") as adapter:
        assert "1 more adapters in its subfolders aren't read: critic" in adapter.flags


def test_weights_beside_an_adapter_are_mentioned(write_adapter: Any) -> None:
    folder = write_adapter(FACTORS, PLAIN)
    (folder / "non_lora_trainables.bin").write_bytes(b"x")
    with open_adapter(folder) as adapter:
        assert (
            "weight files in the same folder aren't read: non_lora_trainables.bin" in adapter.flags
        )


def test_the_only_file_of_a_folder_is_read(tmp_path: Path) -> None:
    save_file(FACTORS, tmp_path / "pytorch_lora_weights.safetensors")
    with open_adapter(tmp_path) as adapter:
        np.testing.assert_array_equal(adapter.delta("q"), np.full((4, 3), 2.0))
    save_file(FACTORS, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"2 files that may be adapters \(other\.safetensors, py"):
        open_adapter(tmp_path)


def test_a_whole_model_is_refused_as_one(tmp_path: Path, write_model: Any) -> None:
    model = write_model({"q.weight": torch.ones(4, 3)}, {"model_type": "x"})
    with pytest.raises(InputError, match=r"is a whole model, not an adapter.*two checkpoints"):
        open_adapter(model)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match="is a whole model, not an adapter"):
        open_adapter(tmp_path / "pipeline")


def test_weights_without_their_config_are_refused_with_the_remedy(
    tmp_path: Path, write_adapter: Any
) -> None:
    folder = write_adapter(FACTORS, PLAIN)
    (folder / "adapter_config.json").unlink()
    for path in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(InputError, match=r"no adapter_config\.json, so the scaling"):
            open_adapter(path)


def test_a_config_of_another_library_is_refused(write_adapter: Any) -> None:
    config = {"architecture": None, "config": {"reduction_factor": 16}, "model_class": "Bert"}
    with pytest.raises(InputError, match=r"neither PEFT's.*nor MLX's.*architecture, config, model"):
        open_adapter(write_adapter(FACTORS, config))


@pytest.mark.parametrize(
    "method", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "ADAPTION_PROMPT"]
)
def test_prompt_methods_are_refused(write_adapter: Any, method: str) -> None:
    path = write_adapter({"prompt_embeddings": torch.ones(2, 3)}, {"peft_type": method})
    with pytest.raises(InputError) as caught:
        open_adapter(path)
    assert f"peft_type {method} trains prompts and changes no weight" in str(caught.value)
    assert "merge" not in str(caught.value)


@pytest.mark.parametrize("method", ["XLORA", "POLY", "SHADOW"])
def test_methods_that_depend_on_the_input_are_refused(write_adapter: Any, method: str) -> None:
    with pytest.raises(InputError, match="differently for each input") as caught:
        open_adapter(write_adapter(FACTORS, {"peft_type": method}))
    assert "merge" not in str(caught.value)


@pytest.mark.parametrize("setting", ["alora_invocation_tokens", "layer_replication"])
def test_the_remedy_for_unmergeable_settings_works(write_adapter: Any, setting: str) -> None:
    path = write_adapter(FACTORS, PLAIN | {setting: [[0, 2]]})
    with pytest.raises(InputError, match="remove the setting from a copy of the folder") as caught:
        open_adapter(path)
    assert "merge it" not in str(caught.value)
    config = json.loads((path / "adapter_config.json").read_text())
    del config[setting]
    (path / "adapter_config.json").write_text(json.dumps(config))
    with open_adapter(path) as adapter:
        np.testing.assert_array_equal(adapter.delta("q"), np.full((4, 3), 4.0))


def test_a_part_of_an_adapter_is_left_out_with_its_share(write_adapter: Any) -> None:
    tensors = FACTORS | {
        "k.lora_A.weight": torch.ones(2, 3),
        "v.lora_A.weight": torch.ones(2, 3),
        "v.lora_B.weight": torch.ones(4, 2),
        "v.lora_C.weight": torch.ones(5),
        "v.lora_B.bias": torch.ones(4),
    }
    with open_adapter(write_adapter(tensors, PLAIN)) as adapter:
        assert adapter.modules() == ["q"]
        assert {part.total for part in adapter.left_out} == {14 + 6 + 14 + 5 + 4}
        assert {part.total for part in adapter.left_out} == {adapter.parameters}
        assert sum(part.count for part in adapter.left_out) == 6 + 14 + 5 + 4
        why = " ".join(part.why for part in adapter.left_out)
        assert "has A but no B (k.lora_A.weight)" in why
        assert "v.lora_C.weight belongs to a method that can't be read exactly as lora" in why
        assert "a bias of lora_B" in why
        with pytest.raises(InputError, match=r"left out: .* of 43 parameters of adapter"):
            adapter.refuse_partial()
    with open_adapter(write_adapter(FACTORS, PLAIN, folder="whole")) as adapter:
        adapter.refuse_partial()


def test_integers_beside_saved_modules_are_not_refused(write_adapter: Any) -> None:
    tensors = FACTORS | {
        "embeddings.weight": torch.ones(3, 2),
        "embeddings.position_ids": torch.arange(3),
    }
    with open_adapter(write_adapter(tensors, PLAIN)) as adapter:
        assert adapter.saved_weights() == ["embeddings.weight"]
