"""Settings are read as PEFT reads them, or refused by name."""

import json
from typing import Any

import peft
import pytest

from lowrank_study.checkpoints import open_adapter
from lowrank_study.errors import InputError
from tests.checkpoints.adapters.conftest import LORA, check
from tests.checkpoints.conftest import PLAIN, two_factors

pytestmark = [
    # PEFT's own remarks about models that have no config
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
]


def test_patterns_take_peft_s_precedence(trained: Any) -> None:
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


def test_a_rank_other_than_the_config_s_is_refused(trained: Any) -> None:
    folder, _, _ = trained(peft.LoraConfig(**LORA))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(InputError, match="has factors of rank 4, but its config says 8"):
        open_adapter(folder)
    path.write_text(json.dumps(config | {"rank_pattern": {"layers.1.up": 2}}))
    with pytest.raises(InputError, match=r"1\.up has factors of rank 4, but its config says 2"):
        open_adapter(folder)


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
def test_a_setting_of_the_wrong_type_is_refused(
    write_adapter: Any, change: dict[str, Any], message: str
) -> None:
    path = write_adapter(two_factors(), PLAIN | change)
    with pytest.raises(InputError, match=message):
        open_adapter(path)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga", "new", 2, []])
def test_an_unrepeatable_initialisation_is_refused(write_adapter: Any, start: Any) -> None:
    path = write_adapter(two_factors(), PLAIN | {"init_lora_weights": start})
    with pytest.raises(InputError, match=r"init_lora_weights .* changes the base weights"):
        open_adapter(path)


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
def test_other_methods_are_refused_by_name(trained: Any, method: str) -> None:
    folder, _, _ = trained(OTHERS[method]())
    message = f"peft_type {method} can't be read exactly"
    if method == "VERA":
        message = "VeRA without its projections"
    with pytest.raises(InputError, match=message):
        open_adapter(folder)


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
def test_a_setting_that_changes_the_update_is_refused_by_name(
    write_adapter: Any, name: str, value: Any
) -> None:
    path = write_adapter(two_factors(), PLAIN | {name: value})
    with pytest.raises(InputError, match=f"the setting {name}"):
        open_adapter(path)
