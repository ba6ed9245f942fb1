"""Wrapper prefixes and missing heads do not keep tensors from being matched."""

from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import pair
from lowrank_study.errors import InputError


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.encoder.weight",
        "_orig_mod.encoder.weight",
        "base_model.model.encoder.weight",
        "_fsdp_wrapped_module.encoder.weight",
        "module._orig_mod.base_model.model.encoder.weight",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.encoder._orig_mod.weight",
    ],
)
def test_wrapper_prefixes_are_stripped(paired: Any, wrapped: str) -> None:
    pairing = paired({"encoder.weight": torch.ones(2, 3)}, {wrapped: torch.full((2, 3), 2.0)})
    ((match, W0_OI, W_OI),) = pairing.read_matrices()
    assert match.name == "encoder"
    np.testing.assert_array_equal(W_OI - W0_OI, np.ones((2, 3)))


def test_a_base_model_saved_without_its_head_is_matched(paired: Any) -> None:
    names = [f"encoder.layer.{i}.{part}.weight" for i in range(3) for part in ("query", "key")]
    base = {name: torch.ones(2, 2) for name in names} | {"embeddings.LayerNorm.bias": torch.ones(2)}
    tuned = {f"bert.{name}": value + 1 for name, value in base.items()}
    tuned["classifier.weight"] = torch.ones(2, 2)
    pairing = paired(base, tuned)
    assert [match.name for match in pairing.matches] == [
        f"bert.{name.removesuffix('.weight')}" for name in sorted(names)
    ]
    assert list(pairing.vectors) == ["bert.embeddings.LayerNorm.bias"]
    assert pairing.skipped == {"classifier": "only in the tuned checkpoint"}
    assert "names of the pretrained checkpoint read with the prefix bert." in pairing.flags
    back = pair(pairing.after, pairing.before)
    assert "names of the tuned checkpoint read with the prefix bert." in back.flags
    assert len(back.matches) == 6


def test_two_prefixes_that_match_equally_well_are_refused(paired: Any) -> None:
    base = {"q.weight": torch.ones(2, 2)}
    tuned = {"left.q.weight": torch.ones(2, 2), "right.q.weight": torch.ones(2, 2)}
    with pytest.raises(InputError, match="match equally well"):
        paired(base, tuned)
