"""Code and odd names in a file are only text."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import find_matrices, open_adapter, open_weights, pair
from lowrank_study.errors import InputError
from tests.checkpoints.conftest import ONE


@pytest.mark.parametrize(
    "change",
    [
        {"auto_mapping": {"base_model_class": "Trap", "parent_library": "trap_module"}},
        {"megatron_core": "trap_module"},
        {"base_model_name_or_path": "../../trap_module"},
    ],
    ids=str,
)
def test_a_module_named_in_an_adapter_config_is_never_imported(
    tmp_path: Path, monkeypatch: Any, write_adapter: Any, change: dict[str, Any]
) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "trap_module.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_adapter(
        {
            "base_model.model.q.lora_A.weight": torch.ones(1, 2),
            "base_model.model.q.lora_B.weight": torch.ones(3, 1),
        },
        {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | change,
    )
    with open_adapter(path) as adapter:
        np.testing.assert_array_equal(adapter.delta("q"), np.ones((3, 2)))
    assert not mark.exists()


def test_a_setting_that_names_custom_code_is_refused(write_adapter: Any) -> None:
    path = write_adapter({"x": torch.ones(1)}, {"peft_type": "LORA", "_custom_modules": {"a": "b"}})
    with pytest.raises(InputError, match="the setting _custom_modules"):
        open_adapter(path)


def test_a_target_or_remote_code_in_a_config_is_only_text(
    tmp_path: Path, monkeypatch: Any, write_model: Any
) -> None:
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')"
    config = {
        "_target_": "builtins.exec",
        "_args_": [code],
        "model_type": "trap",
        "auto_map": {"AutoModel": "trap_module.Trap", "AutoConfig": "trap_module.Trap"},
    }
    path = write_model({"w": torch.ones(2, 2)}, config)
    (path / "trap_module.py").write_text(code)
    monkeypatch.syspath_prepend(path)
    with open_weights(path) as weights:
        assert weights.config == config
        matrices, _ = find_matrices(weights)
        np.testing.assert_array_equal(matrices["w"].read(), np.ones((2, 2)))
    assert not mark.exists()


@pytest.mark.parametrize("depth", [500, 900, 980])
def test_a_deeply_nested_config_does_no_harm(write_model: Any, depth: int) -> None:
    path = write_model({"w.weight": torch.ones(2, 2)})
    nested = "[" * depth + "]" * depth
    config = f'{{"model_type": {nested}, "hidden_size": {nested}, "quantization_config": {nested}}}'
    (path / "config.json").write_text(config)
    (path / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "strange": {nested}}}')
    with pytest.raises(InputError):
        open_adapter(path)
    with contextlib.suppress(InputError), open_weights(path) as a, open_weights(path) as b:
        assert len(pair(a, b).matches) == 1


STRANGE = [
    "a\0b",
    "a\nb",
    "\u202eevil",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "",
    "x" * 5000,
]


@pytest.mark.parametrize("name", STRANGE, ids=range(len(STRANGE)))
def test_strange_names_pass_through_as_they_are(
    tmp_path: Path, write_raw: Any, entry: Any, name: str
) -> None:
    path = write_raw({name: entry(0, 4, [1, 1])}, ONE)
    before = sorted(tmp_path.rglob("*"))
    with open_weights(path) as a, open_weights(path) as b:
        assert a.names() == [name]
        pairing = pair(a, b)
        assert [match.name for match, _, _ in pairing.read_matrices()] == [name]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", STRANGE, ids=range(len(STRANGE)))
def test_strange_names_are_one_printable_line_in_errors(
    write_raw: Any, entry: Any, name: str
) -> None:
    path = write_raw({name: entry(0, 8, [1])}, ONE)
    with pytest.raises(InputError) as caught:
        open_weights(path)
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1000
