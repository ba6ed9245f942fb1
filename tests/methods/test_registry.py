"""Every method is found by its name in YAML and by the kind that a run stores."""

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.methods import method_named, method_names, method_of_kind

STORED = {
    "full": "FullFineTuning",
    "head": "HeadOnly",
    "lora": "Lora",
    "dora": "Dora",
    "peft": "PeftMethod",
    "bitfit": "BitFit",
    "layernorm": "LayerNormTuning",
}


def test_every_method_has_a_configuration_and_keeps_its_kind() -> None:
    assert set(STORED) <= set(method_names())
    for name in method_names():
        assert (CONF_FOLDER / "method" / f"{name}.yaml").is_file()
        kind = method_named(name).__name__
        assert STORED.get(name, kind) == kind
        assert method_of_kind(kind) is method_named(name)
