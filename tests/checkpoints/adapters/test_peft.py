"""Classes 47 to 58: adapters, against what PEFT itself computes from the same folder."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_study.checkpoints import open_adapter, open_weights, pair
from lowrank_study.errors import InputError

pytestmark = [
    # PEFT's own remarks about models that have no config
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(12, 12)
        self.up = nn.Linear(12, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.query(x) + self.up(x)[..., :12])


class Model(nn.Module):
    """Two blocks, an embedding, a convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 12)
        self.layers = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(4, 6, (3, 2))
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.layers:
            x = block(x)
        return torch.as_tensor(self.head(x))


def randomise(model: nn.Module) -> None:
    """Train without training: give everything that is trainable other values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 1.0 if "magnitude" in name else 0.3
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter * scale + 0.3 * noise.abs() if scale == 1 else noise)


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    """Train, save and merge an adapter with PEFT; return its folder, the base and the deltas."""

    def make(config: peft.PeftConfig, *, model: Any = None) -> Any:
        torch.manual_seed(0)
        base = Model() if model is None else model
        fresh = copy.deepcopy(base)
        before = fresh.state_dict()
        folder = tmp_path / "base"
        folder.mkdir()
        save_file(
            {name: value.contiguous() for name, value in before.items()},
            folder / "model.safetensors",
        )
        wrapped = peft.get_peft_model(base, config)
        randomise(wrapped)
        wrapped.save_pretrained(tmp_path / "adapter")
        before = {name: value.double() for name, value in before.items()}
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
        merged = loaded.double().merge_and_unload().state_dict()
        deltas = {name: merged[name] - before[name] for name in before}
        return tmp_path / "adapter", folder, deltas

    return make


def check(folder: Path, base_folder: Path, deltas: dict[str, torch.Tensor]) -> Any:
    """Compare every update with PEFT's merge; return the adapter's kind."""
    with open_adapter(folder) as adapter, open_weights(base_folder) as base:
        adapter.check_base(base)
        left = {name for name, delta in deltas.items() if delta.abs().max() > 0}
        for module in adapter.modules():
            expected = deltas[f"{module}.weight"].numpy()
            delta = adapter.delta(module, base)
            assert delta.dtype == np.float64
            # PEFT takes PiSSA's and OLoRA's beginning out of the base in float32
            tolerance = 5e-6 if adapter.kind in ("pissa", "olora") else 1e-12
            np.testing.assert_allclose(
                delta, expected.reshape(expected.shape[0], -1), rtol=1e-12, atol=tolerance
            )
            left.discard(f"{module}.weight")
            if not adapter.needs_base:
                np.testing.assert_array_equal(adapter.delta(module), delta)
        for name in adapter.saved_weights():
            np.testing.assert_allclose(
                adapter.saved_delta(name, base), deltas[name].numpy(), rtol=0, atol=1e-12
            )
            left.discard(name)
        assert left == set(), "changes that the adapter's reader doesn't know of"
        return adapter.kind


class Attention(nn.Module):
    """PyTorch's attention, which PEFT wraps as a whole, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.q = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.attention(x, x, x)[0])


def test_51_multihead_attention_has_two_matrices(trained: Any) -> None:
    config = peft.LoraConfig(target_modules=["attention"], r=2, lora_alpha=3)
    folder, base, deltas = trained(config, model=Attention())
    with open_adapter(folder) as adapter, open_weights(base) as weights:
        assert adapter.modules() == ["attention.out_proj", "attention"]
        for module in adapter.modules():
            tensor = adapter.base_tensor(module, weights)
            np.testing.assert_allclose(
                adapter.delta(module, weights), deltas[tensor].numpy(), rtol=0, atol=1e-12
            )
        assert tensor == "attention.in_proj_weight"
        factors = [adapter.factors(module).scaling for module in adapter.modules()]
        assert factors == [3.0, 1.5]  # PEFT's forward pass adds that of out_proj twice
        assert any("attention.out_proj: measured as twice" in flag for flag in adapter.flags)


def test_32_a_grouped_convolution_is_left_out_by_its_name(tmp_path: Path) -> None:
    both = peft.LoraConfig(target_modules=["grouped", "q"], r=4, lora_alpha=3)
    alone = peft.LoraConfig(target_modules=["grouped"], r=4, lora_alpha=3)
    for name, config in (("both", both), ("alone", alone)):
        peft.get_peft_model(Attention(), config).save_pretrained(tmp_path / name)
    with open_adapter(tmp_path / "both") as adapter:
        assert adapter.modules() == ["q"]
        (part,) = adapter.left_out
        assert part.count == 4 * 8 * 9 + 12
        assert "grouped convolution" in part.why
    with pytest.raises(InputError, match=r"grouped is a grouped convolution.*can't merge"):
        open_adapter(tmp_path / "alone")


LORA = {"target_modules": ["query", "up"], "r": 4, "lora_alpha": 6}


def test_47_patterns_take_peft_s_precedence(trained: Any) -> None:
    config = peft.LoraConfig(
        target_modules=["query", "up"],
        r=2,
        lora_alpha=3,
        rank_pattern={"layers.0.query": 5, "query": 3, r".*\.0\.(up|down)": 7},
        alpha_pattern={"up": 8, "layers.1.up": 100, "^layers.1.query": 9},
    )
    folder, base, deltas = trained(config)
    assert check(folder, base, deltas) == "lora"
    with open_adapter(folder) as adapter:
        found = {
            m: (adapter.factors(m).A_RI.shape[0], adapter.factors(m).scaling)
            for m in adapter.modules()
        }
    assert found == {
        "layers.0.query": (5, 3 / 5),
        "layers.0.up": (7, 8 / 7),
        "layers.1.query": (3, 9 / 3),
        "layers.1.up": (2, 100 / 2),  # PEFT sorts the patterns when it saves them
    }
    assert any("patterns of different alpha match 1 modules" in flag for flag in adapter.flags)


def test_47_a_rank_other_than_the_config_s_is_refused(trained: Any) -> None:
    folder, _, _ = trained(peft.LoraConfig(**LORA))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(InputError, match="has factors of rank 4, but its config says 8"):
        open_adapter(folder)
    path.write_text(json.dumps(config | {"rank_pattern": {"layers.1.up": 2}}))
    with pytest.raises(InputError, match=r"1\.up has factors of rank 4, but its config says 2"):
        open_adapter(folder)


def two_factors(module: str = "q") -> dict[str, torch.Tensor]:
    return {
        f"base_model.model.{module}.lora_A.weight": torch.ones(2, 3),
        f"base_model.model.{module}.lora_B.weight": torch.ones(4, 2),
    }


PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "a*a*a*a*a*[b]",
        "(a|a)" * 40 + "b",
        "a?" * 40 + "a" * 40,
        "(.*)*x",
        "(?=a)a",
        r"(a)\1",
        "(((a{0,99}){0,99}){0,99}){0,99}",
        "x" * 501,
    ],
)
def test_47_a_pattern_that_takes_for_ever_is_refused(
    write_adapter: Any, refused_in_budget: Any, pattern: str
) -> None:
    module = "a" * 60
    path = write_adapter(two_factors(module), PLAIN | {"rank_pattern": {pattern: 3}})
    assert "could take too long to match" in refused_in_budget(path, "open_adapter")


def test_47_many_patterns_are_refused_in_time(write_adapter: Any, refused_in_budget: Any) -> None:
    patterns = {f"a*b*c{i}": 3 for i in range(200_000)}
    path = write_adapter(two_factors(), PLAIN | {"rank_pattern": patterns})
    assert "is not a table of at most 10000 patterns" in refused_in_budget(path, "open_adapter")
    patterns = {f"[a-c]*b*{i}[a-c]": 3 for i in range(9_000)}
    tensors: dict[str, torch.Tensor] = {}
    for i in range(300):
        tensors |= two_factors(f"layers.{i}.abc")
    path = write_adapter(tensors, PLAIN | {"rank_pattern": patterns}, folder="more")
    assert "could take too long" in refused_in_budget(path, "open_adapter")


def test_47_one_pattern_a_module_is_quick(write_adapter: Any) -> None:
    modules = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(150) for part in "qkvo"]
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        tensors |= two_factors(module)
    path = write_adapter(tensors, PLAIN | {"alpha_pattern": dict.fromkeys(modules, 8)})
    with open_adapter(path) as adapter:
        assert {adapter.factors(module).scaling for module in modules} == {4.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": {"(": 3}}, "not a valid pattern"),
        ({"rank_pattern": {"q": "3"}}, "q is 3, not a number"),
        ({"rank_pattern": [1]}, "rank_pattern is not a table"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"r": 0}, "r is 0"),
        ({"use_rslora": "no"}, "use_rslora is no, not true or false"),
    ],
    ids=str,
)
def test_47_a_setting_that_makes_no_sense_is_refused(
    write_adapter: Any, change: dict[str, Any], message: str
) -> None:
    path = write_adapter(two_factors(), PLAIN | change)
    with pytest.raises(InputError, match=message):
        open_adapter(path)


def test_48_rslora_divides_by_the_root_of_the_rank(trained: Any) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, use_rslora=True))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert adapter.factors("layers.0.up").scaling == 3.0


@pytest.mark.parametrize("use_rslora", [False, True])
def test_49_dora_is_exact_with_its_base(trained: Any, use_rslora: bool) -> None:
    config = peft.LoraConfig(**LORA, use_dora=True, use_rslora=use_rslora)
    folder, base, deltas = trained(config)
    assert check(folder, base, deltas) == "dora"
    with open_adapter(folder) as adapter:
        assert adapter.needs_base
        with pytest.raises(InputError, match="give the base model it was trained on"):
            adapter.delta("layers.0.up")
        with pytest.raises(InputError, match="not a product of two factors"):
            adapter.factors("layers.0.up")


def test_49_dora_on_a_convolution_is_exact(trained: Any) -> None:
    config = peft.LoraConfig(target_modules=["conv"], r=2, lora_alpha=3, use_dora=True)
    assert check(*trained(config)) == "dora"


def test_49_dora_without_magnitudes_or_on_an_embedding_is_refused(
    trained: Any, write_adapter: Any
) -> None:
    path = write_adapter(two_factors(), PLAIN | {"use_dora": True}, folder="bare")
    with pytest.raises(InputError, match="module q has A, B but no magnitude"):
        open_adapter(path)
    magnitude = {"base_model.model.q.lora_magnitude_vector": torch.ones(4)}
    path = write_adapter(two_factors() | magnitude, PLAIN, folder="not dora")
    with pytest.raises(InputError, match="the config says use_dora false"):
        open_adapter(path)
    folder, _, _ = trained(peft.LoraConfig(target_modules=["embed"], r=2, use_dora=True))
    with pytest.raises(InputError, match="dora on the embedding embed can't be read exactly"):
        open_adapter(folder)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_50_pissa_and_olora_are_converted_exactly(trained: Any, start: str) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, init_lora_weights=start))
    assert check(folder, base, deltas) == start
    with open_adapter(folder) as adapter, open_weights(base) as weights:
        B_OR, A_RI, scaling, _ = adapter.factors("layers.0.up", weights)
        assert (B_OR.shape, A_RI.shape) == ((20, 8), (8, 12))
        np.testing.assert_allclose(
            scaling * B_OR @ A_RI, adapter.delta("layers.0.up", weights), rtol=0, atol=1e-12
        )
        with pytest.raises(InputError, match="give the base model"):
            adapter.factors("layers.0.up")
        assert any("computed again in float64" in flag for flag in adapter.flags)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga", "new", 2, []])
def test_50_a_start_that_cannot_be_repeated_is_refused(write_adapter: Any, start: Any) -> None:
    path = write_adapter(two_factors(), PLAIN | {"init_lora_weights": start})
    with pytest.raises(InputError, match=r"init_lora_weights .* changes the base weights"):
        open_adapter(path)


def test_50_olora_on_a_matrix_stored_in_by_out_is_refused(
    write_adapter: Any, write_model: Any
) -> None:
    path = write_adapter(
        two_factors("h.0.mlp.c_fc"),
        PLAIN | {"init_lora_weights": "olora", "fan_in_fan_out": True},
    )
    for folder, config in (("with", {"model_type": "gpt2"}), ("without", None)):
        base = write_model({"h.0.mlp.c_fc.weight": torch.ones(3, 4)}, config, folder=folder)
        with (
            open_adapter(path) as adapter,
            open_weights(base) as weights,
            pytest.raises(InputError, match=r"olora on h\.0\.mlp\.c_fc"),
        ):
            adapter.delta("h.0.mlp.c_fc", weights)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", True, False])
def test_50_a_start_that_leaves_the_base_alone_is_read(trained: Any, start: Any) -> None:
    assert check(*trained(peft.LoraConfig(**LORA, init_lora_weights=start))) == "lora"


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_51_saved_modules_and_biases_are_full_updates(trained: Any, bias: str) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, modules_to_save=["head"], bias=bias))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert {"head.weight", "head.bias"} <= set(adapter.saved_weights())
        assert ("layers.0.query.bias" in adapter.saved_weights()) == (bias != "none")


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(**LORA, trainable_token_indices={"embed": [1, 7]}),
        peft.TrainableTokensConfig(token_indices=[2, 3, 9], target_modules=["embed"]),
    ],
    ids=["with lora", "alone"],
)
def test_51_trained_tokens_change_their_rows_only(trained: Any, config: Any) -> None:
    folder, base, deltas = trained(config)
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert "embed.weight" in adapter.saved_weights()


def test_51_a_lora_on_an_embedding_is_oriented_as_the_embedding(trained: Any) -> None:
    folder, base, deltas = trained(peft.LoraConfig(target_modules=["embed", "conv"], r=2))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        factors = adapter.factors("embed")
        assert factors.B_OR.shape == (10, 2)
        assert factors.A_RI.shape == (2, 12)
        assert adapter.factors("conv").A_RI.shape == (2, 24)


def test_51_a_saved_weight_the_base_lacks_or_shapes_otherwise_is_refused(
    write_adapter: Any, write_model: Any
) -> None:
    saved = {"base_model.model.head.weight": torch.ones(3, 3)}
    path = write_adapter(two_factors() | saved, PLAIN)
    base = write_model({"q.weight": torch.ones(4, 3), "other": torch.ones(1)})
    with open_adapter(path) as adapter, open_weights(base) as weights:
        with pytest.raises(InputError, match=r"module head\.weight is not in the base model"):
            adapter.saved_delta("head.weight", weights)
        with pytest.raises(InputError, match=r"no saved weight x; it has head\.weight"):
            adapter.read("x")
    base = write_model({"q.weight": torch.ones(4, 3), "head.weight": torch.ones(1, 3)})
    with (
        open_adapter(path) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"has shape \[3, 3\], but in the base \[1, 3\]"),
    ):
        adapter.saved_delta("head.weight", weights)


def test_51_the_bias_of_a_factor_is_flagged(trained: Any) -> None:
    folder, base, deltas = trained(peft.LoraConfig(**LORA, lora_bias=True))
    check(folder, base, deltas)
    with open_adapter(folder) as adapter:
        assert adapter.left_out == []
        assert "layers.0.query.bias" in adapter.saved_weights()
        with pytest.raises(InputError, match="is added to the base's bias"):
            adapter.read("layers.0.query.bias")
        assert any("lora_B.bias adds a bias" in flag for flag in adapter.flags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_B.weight": None}, "module q has A but no B"),
        ({"lora_A.weight": None}, "module q has B but no A"),
        ({"lora_A.weight": torch.ones(0)}, r"empty, shape \[0\].*ZeRO-3"),
        ({"lora_B.weight": torch.ones(4, 0)}, "ZeRO-3"),
        ({"lora_A.weight": torch.ones(6)}, "which don't multiply"),
        ({"lora_B.weight": torch.ones(4, 5)}, "which don't multiply"),
        ({"lora_B.weight": torch.ones(4, 2, 3)}, "which don't multiply"),
        ({"lora_A.default.weight": torch.ones(2, 3)}, "one of them doesn't belong"),
        ({"lora_C.weight": torch.ones(2, 3)}, "belongs to a method"),
        ({"lora_embedding_A": torch.ones(2, 3)}, "one of them doesn't belong"),
        ({"lora_A.weight": torch.ones(2, 3, dtype=torch.int32)}, "int32"),
    ],
    ids=str,
)
def test_52_unfinished_factors_are_refused(
    write_adapter: Any, change: dict[str, Any], message: str
) -> None:
    tensors: dict[str, Any] = two_factors()
    tensors |= {f"base_model.model.q.{end}": value for end, value in change.items()}
    path = write_adapter({k: v for k, v in tensors.items() if v is not None}, PLAIN)
    with pytest.raises(InputError, match=message):
        open_adapter(path)


def test_52_an_adapter_that_diverged_is_refused(write_adapter: Any) -> None:
    tensors = two_factors()
    tensors["base_model.model.q.lora_B.weight"][0, 0] = torch.nan
    with (
        open_adapter(write_adapter(tensors, PLAIN)) as adapter,
        pytest.raises(InputError, match=r"q\.lora_B\.weight has 1 NaN or infinite"),
    ):
        adapter.factors("q")


def test_52_an_adapter_without_config_or_tensors_is_refused(
    tmp_path: Path, write_adapter: Any
) -> None:
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        open_adapter(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_adapter(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="holds no tensors of an adapter"):
        open_adapter(write_adapter({}, PLAIN))
    path = write_adapter(two_factors(), PLAIN)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        open_adapter(path)
    with pytest.raises(InputError, match="is an adapter, not a whole model"):
        open_weights(path)


def test_52_a_module_that_is_not_there_names_those_that_are(write_adapter: Any) -> None:
    with open_adapter(write_adapter(two_factors(), PLAIN)) as adapter:
        for ask in (adapter.factors, adapter.delta):
            with pytest.raises(InputError, match="no module k; it has q"):
                ask("k")


def test_53_an_adapter_with_b_zero_is_untrained(write_adapter: Any) -> None:
    tensors = two_factors("a") | two_factors("b")
    tensors["base_model.model.a.lora_B.weight"].zero_()
    with open_adapter(write_adapter(tensors, PLAIN)) as adapter:
        assert not np.any(adapter.delta("a"))
        assert np.any(adapter.delta("b"))


def test_54_the_wrong_base_is_refused(write_adapter: Any, write_model: Any) -> None:
    path = write_adapter(two_factors(), PLAIN)
    wrong_shape = write_model({"q.weight": torch.ones(5, 3)}, folder="shape")
    other_names = write_model({"k.weight": torch.ones(4, 3)}, folder="names")
    right = write_model({"q.weight": torch.ones(4, 3)}, folder="right")
    with open_adapter(path) as adapter:
        with (
            open_weights(wrong_shape) as base,
            pytest.raises(InputError, match=r"changes a \[4, 3\] matrix.* it is \[5, 3\]"),
        ):
            adapter.delta("q", base)
        with (
            open_weights(other_names) as base,
            pytest.raises(InputError, match=r"module q is not in the base.*which has k\.weight"),
        ):
            adapter.check_base(base)
        with open_weights(right) as base:
            adapter.check_base(base)


def test_54_a_base_saved_without_its_head_is_found(write_adapter: Any, write_model: Any) -> None:
    saved = {"base_model.model.bert.norm.weight": torch.full((2,), 3.0)}
    path = write_adapter(two_factors("bert.encoder.q") | saved, PLAIN)
    headless = write_model(
        {"encoder.q.weight": torch.ones(4, 3), "norm.weight": torch.ones(2)}, folder="headless"
    )
    deeper = write_model(
        {"x.bert.encoder.q.weight": torch.ones(4, 3), "x.bert.norm.weight": torch.ones(2)},
        folder="deeper",
    )
    unclear = write_model(
        {f"{x}.bert.encoder.q.weight": torch.ones(4, 3) for x in "xy"}, folder="unclear"
    )
    with open_adapter(path) as adapter:
        for folder in (headless, deeper):
            with open_weights(folder) as base:
                adapter.check_base(base)
                np.testing.assert_array_equal(adapter.saved_delta("bert.norm.weight", base), [2, 2])
        with (
            open_weights(unclear) as base,
            pytest.raises(InputError, match=r"bert\.encoder\.q fits 2 tensors of the base model"),
        ):
            adapter.check_base(base)


def test_54_a_base_with_nan_is_refused(write_adapter: Any, write_model: Any) -> None:
    path = write_adapter(two_factors(), PLAIN)
    base = write_model({"q.weight": torch.full((4, 3), torch.nan)})
    with (
        open_adapter(path) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"tensor q\.weight has 12 NaN"),
    ):
        adapter.base_matrix("q", weights)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(target_modules=["query", "up"], r=3, alpha=5),
        peft.LoKrConfig(target_modules=["query", "up"], r=2, alpha=5),
        peft.LoKrConfig(target_modules=["query", "up"], r=1, alpha=5, decompose_both=True),
        peft.LoKrConfig(target_modules=["query", "up"], r=1, alpha=5, decompose_factor=3),
        peft.VeraConfig(target_modules=["query", "up"], r=3),
    ],
    ids=lambda config: f"{config.peft_type.value}",
)
def test_55_loha_lokr_and_vera_are_exact_through_peft(trained: Any, config: Any) -> None:
    folder, base, deltas = trained(config)
    assert check(folder, base, deltas) == config.peft_type.value.lower()
    with open_adapter(folder) as adapter, pytest.raises(InputError, match="give the base model"):
        adapter.delta("layers.0.up")


OTHERS = {
    "ADALORA": lambda: peft.AdaLoraConfig(target_modules=["query"], total_step=10),
    "IA3": lambda: peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
    "OFT": lambda: peft.OFTConfig(target_modules=["query"], oft_block_size=4),
    "HRA": lambda: peft.HRAConfig(target_modules=["query"], r=2),
    "FOURIERFT": lambda: peft.FourierFTConfig(target_modules=["query"], n_frequency=4),
    "VERA": lambda: peft.VeraConfig(target_modules=["query"], r=2, save_projection=False),
}


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_55_other_methods_are_refused_by_name(trained: Any, method: str) -> None:
    folder, _, _ = trained(OTHERS[method]())
    message = f"peft_type {method} can't be read exactly"
    if method == "VERA":
        message = "VeRA without its projections"
    with pytest.raises(InputError, match=message):
        open_adapter(folder)


@pytest.mark.parametrize("change", [{"r": 10**8}, {"rank_pattern": {"up": 3}}])
def test_55_a_loha_config_that_does_not_fit_is_refused(trained: Any, change: Any) -> None:
    folder, base, _ = trained(peft.LoHaConfig(target_modules=["up"], r=3, alpha=5))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with (
        open_adapter(folder) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"its config says|can't be read exactly"),
    ):
        adapter.delta("layers.0.up", weights)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("LOHA", "hada_w1_a", torch.tensor(1.0)),
        ("LOHA", "hada_w1_b", torch.ones(3, 13)),
        ("VERA", "vera_A", torch.ones(2)),
        ("VERA", "vera_B", torch.ones(2, 3)),
        ("LOKR", "lokr_w1", torch.ones(1, 1)),
    ],
)
def test_55_tensors_that_do_not_fit_are_refused(
    trained: Any, method: str, name: str, value: torch.Tensor
) -> None:
    classes = {"LOHA": peft.LoHaConfig, "VERA": peft.VeraConfig, "LOKR": peft.LoKrConfig}
    folder, base, _ = trained(classes[method](target_modules=["up"], r=3))
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    save_file({k: value.clone() if k.endswith(name) else v for k, v in stored.items()}, path)
    state = torch.get_rng_state()
    with (
        open_adapter(folder) as adapter,
        open_weights(base) as weights,
        pytest.raises(InputError, match=r"layers\.0\.up: .*" + name),
    ):
        adapter.delta("layers.0.up", weights)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("with_alpha", [True, False])
def test_56_kohya_s_layout_is_read(tmp_path: Path, write_model: Any, with_alpha: bool) -> None:
    torch.manual_seed(0)
    down, up = torch.randn(2, 6, dtype=torch.float16), torch.randn(5, 2, dtype=torch.float16)
    conv_down, conv_up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    tensors = {
        "lora_unet_mid_block_to_q.lora_down.weight": down,
        "lora_unet_mid_block_to_q.lora_up.weight": up,
        "lora_unet_conv_in.lora_down.weight": conv_down,
        "lora_unet_conv_in.lora_up.weight": conv_up,
    }
    if with_alpha:
        tensors["lora_unet_mid_block_to_q.alpha"] = torch.tensor(1.0)
        tensors["lora_unet_conv_in.alpha"] = torch.tensor(1.0)
    path = tmp_path / "kohya.safetensors"
    save_file(tensors, path)
    scaling = 0.5 if with_alpha else 1.0
    base = write_model(
        {"mid_block.to_q.weight": torch.ones(5, 6), "conv_in.weight": torch.ones(4, 3, 3, 3)}
    )
    with open_adapter(path) as adapter, open_weights(base) as weights:
        assert adapter.kind == "kohya"
        name = "lora_unet_mid_block_to_q"
        assert adapter.modules() == ["lora_unet_conv_in", name]
        factors = adapter.factors(name)
        assert factors.scaling == scaling
        assert factors.storage_dtype == "float16"
        np.testing.assert_allclose(
            adapter.delta(name), scaling * (up.double() @ down.double()).numpy(), rtol=1e-14
        )
        np.testing.assert_allclose(
            adapter.delta("lora_unet_conv_in", weights),
            scaling * (conv_up.flatten(1).double() @ conv_down.flatten(1).double()).numpy(),
            rtol=1e-14,
        )
        assert adapter.base_tensor(name, weights) == "mid_block.to_q.weight"
        assert any("no alpha" in flag for flag in adapter.flags) != with_alpha


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("lora_unet_q.lora_mid.weight", "belongs to a method"),
        ("lora_unet_q.dora_scale", "belongs to a method"),
        ("lora_unet_q.hada_w1_a", "belongs to a method"),
    ],
)
def test_56_variants_of_kohya_s_layout_are_refused_by_name(
    tmp_path: Path, extra: str, message: str
) -> None:
    path = tmp_path / "kohya.safetensors"
    tensors = {
        "lora_unet_q.lora_down.weight": torch.ones(2, 3),
        "lora_unet_q.lora_up.weight": torch.ones(4, 2),
    }
    save_file(tensors | {extra: torch.ones(2, 2)}, path)
    with pytest.raises(InputError, match=message):
        open_adapter(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["experts.down_proj"]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("kasa_config", {"beta": 1}),
        ("use_bdlora", {"x": 1}),
        ("megatron_config", {"x": 1}),
        ("a_setting_of_next_year", 1),
    ],
)
def test_57_a_setting_that_changes_the_update_is_refused_by_name(
    write_adapter: Any, name: str, value: Any
) -> None:
    path = write_adapter(two_factors(), PLAIN | {name: value})
    with pytest.raises(InputError, match=f"the setting {name}"):
        open_adapter(path)


def test_58_a_merge_stored_in_16_bits_is_flagged(write_model: Any) -> None:
    torch.manual_seed(0)
    base = {"q.weight": torch.randn(4, 4)}
    merged = {"q.weight": (base["q.weight"] + 0.01).to(torch.bfloat16)}
    left = open_weights(write_model(base, {"model_type": "x"}, folder="a"))
    right = open_weights(write_model(merged, {"model_type": "x"}, folder="b"))
    with left, right:
        assert pair(left, right).flags == [
            "stored in bfloat16: each difference (as of a merged adapter) carries rounding noise"
        ]


def test_58_an_adapter_stored_in_16_bits_is_flagged(write_adapter: Any) -> None:
    tensors = {name: value.to(torch.bfloat16) for name, value in two_factors().items()}
    with open_adapter(write_adapter(tensors, PLAIN)) as adapter:
        assert adapter.flags == ("adapter stored in bfloat16",)
        assert adapter.factors("q").storage_dtype == "bfloat16"


def test_29_the_storage_dtype_is_that_of_the_tensors_an_update_is_made_of(
    write_adapter: Any,
) -> None:
    tensors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 3, dtype=torch.float32),
        "base_model.model.q.lora_B.weight": torch.ones(4, 2, dtype=torch.float16),
        "base_model.model.q.lora_magnitude_vector": torch.ones(4, dtype=torch.float32),
        "base_model.model.v.lora_A.weight": torch.ones(2, 3),
        "base_model.model.v.lora_B.weight": torch.ones(4, 2),
        "base_model.model.v.lora_magnitude_vector": torch.ones(4, dtype=torch.bfloat16),
        "base_model.model.head.weight": torch.ones(5, 4),
    }
    config = PLAIN | {"use_dora": True, "modules_to_save": ["head"], "target_modules": ["q", "v"]}
    with open_adapter(write_adapter(tensors, config)) as adapter:
        names = [*adapter.modules(), *adapter.saved_weights()]
        found = {name: adapter.storage_dtype(name) for name in names}
        assert found == {"q": "float16", "v": "bfloat16", "head.weight": "float32"}
        with pytest.raises(InputError, match="no module k; it has q, v"):
            adapter.storage_dtype("k")


def test_an_adapter_in_a_pickle_needs_the_opt_in(write_adapter: Any) -> None:
    path = write_adapter(two_factors(), PLAIN)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="is a PyTorch pickle"):
        open_adapter(path)
    with open_adapter(path, allow_pickle=True) as adapter:
        np.testing.assert_array_equal(adapter.delta("q"), np.full((4, 3), 4.0))
