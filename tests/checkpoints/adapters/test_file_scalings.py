"""alpha is read from the tensors, diffusers' header or kohya's, in this order."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_adapter
from lowrank_study.errors import InputError
from tests.checkpoints.adapters.conftest import BA, FLAT, A, B, WriteFile


def test_alpha_in_kohya_s_header_alone_is_read(write_file: WriteFile) -> None:
    header = {"ss_network_dim": "2", "ss_network_alpha": "0.125"}
    with open_adapter(write_file(FLAT, header)) as adapter:
        assert adapter.factors("lora_unet_q").scaling == 0.0625
        np.testing.assert_array_equal(adapter.delta("lora_unet_q"), 0.0625 * BA)
        assert adapter.assumed == ()


def test_a_module_s_own_alpha_comes_before_the_header_s(write_file: WriteFile) -> None:
    header = {"ss_network_dim": "2", "ss_network_alpha": "0.125"}
    tensors = FLAT | {
        "lora_unet_q.alpha": torch.tensor(4, dtype=torch.int32),
        "lora_unet_k.lora_down.weight": A,
        "lora_unet_k.lora_up.weight": B,
    }
    with open_adapter(write_file(tensors, header)) as adapter:
        assert adapter.factors("lora_unet_q").scaling == 2.0
        assert adapter.factors("lora_unet_k").scaling == 0.0625


def test_a_convolution_has_an_alpha_of_its_own_in_the_header(write_file: WriteFile) -> None:
    down, up = torch.randn(4, 3, 3, 3), torch.randn(5, 4, 1, 1)
    tensors = FLAT | {"lora_unet_conv.lora_down.weight": down, "lora_unet_conv.lora_up.weight": up}
    header = {
        "ss_network_dim": "2",
        "ss_network_alpha": "1",
        "ss_network_args": json.dumps({"conv_dim": "4", "conv_alpha": "2", "algo": "locon"}),
    }
    with open_adapter(write_file(tensors, header)) as adapter:
        assert adapter.factors("lora_unet_q").scaling == 0.5
        assert adapter.factors("lora_unet_conv").scaling == 0.5
        expected = 0.5 * (up.flatten(1).double() @ down.flatten(1).double()).numpy()
        np.testing.assert_allclose(adapter.delta("lora_unet_conv"), expected, rtol=1e-13)


def test_a_convolution_with_a_rank_but_no_alpha_of_its_own_has_kohyas_default_of_1(
    write_file: WriteFile,
) -> None:
    down, up = torch.randn(4, 3, 3, 3), torch.randn(5, 4, 1, 1)
    tensors = {"lora_unet_conv.lora_down.weight": down, "lora_unet_conv.lora_up.weight": up}
    header = {"ss_network_dim": "4", "ss_network_alpha": "2"}
    with open_adapter(write_file(tensors, header)) as adapter:
        assert adapter.factors("lora_unet_conv").scaling == 0.5
    header["ss_network_args"] = json.dumps({"conv_dim": "4"})
    with open_adapter(write_file(tensors, header)) as adapter:
        assert adapter.factors("lora_unet_conv").scaling == 0.25


@pytest.mark.parametrize("alpha", ["Dynamic", "None", "", "nan", "-1", "1e999"])
def test_an_alpha_that_is_not_a_number_is_reported_as_missing(
    write_file: WriteFile, alpha: str
) -> None:
    with open_adapter(write_file(FLAT, {"ss_network_alpha": alpha})) as adapter:
        assert adapter.factors("lora_unet_q").scaling == 1.0
        assert "no alpha for any module (1 of 1): taken as their rank" in adapter.assumed[0]


def test_an_alpha_of_zero_in_the_header_is_the_rank_as_for_kohya(write_file: WriteFile) -> None:
    with open_adapter(write_file(FLAT, {"ss_network_alpha": "0"})) as adapter:
        assert adapter.factors("lora_unet_q").scaling == 1.0


def test_a_header_of_another_rank_is_refused(write_file: WriteFile) -> None:
    path = write_file(FLAT, {"ss_network_dim": "128", "ss_network_alpha": "8"})
    with pytest.raises(InputError, match=r"has rank 2, the header says 128 and alpha 8.*\.alpha"):
        open_adapter(path)


def test_diffusers_header_has_a_config_for_each_model(write_file: WriteFile) -> None:
    header = {
        "transformer.r": 2,
        "transformer.lora_alpha": 6,
        "transformer.alpha_pattern": {"blocks.1.q": 1},
        "text_encoder.r": 2,
        "text_encoder.lora_alpha": 4,
        "text_encoder.use_rslora": True,
    }
    modules = ["transformer.blocks.0.q", "transformer.blocks.1.q", "text_encoder.q"]
    tensors = {f"{m}.lora_A.weight": A for m in modules} | {
        f"{m}.lora_B.weight": B for m in modules
    }
    path = write_file(tensors, {"lora_adapter_metadata": json.dumps(header)})
    with open_adapter(path) as adapter:
        found = {module: adapter.factors(module).scaling for module in adapter.modules()}
    assert found == dict(zip(modules, (3.0, 0.5, 4 / 2**0.5), strict=True))


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor([1, 2]), torch.tensor(torch.nan), torch.tensor(torch.inf), torch.ones(0)],
    ids=str,
)
def test_an_alpha_that_is_not_one_number_is_refused(write_file: WriteFile, alpha: Any) -> None:
    with pytest.raises(InputError, match=r"lora_unet_q\.alpha is not one number"):
        open_adapter(write_file(FLAT | {"lora_unet_q.alpha": alpha}))
