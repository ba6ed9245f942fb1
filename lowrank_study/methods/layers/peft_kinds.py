"""Put PEFT's adapters on a model, and refuse kinds and options that PEFT would misread.

A kind is refused if PEFT would silently train something else: it needs calls that this training
loop doesn't make, or it doesn't read targets as `method.target` gives them. An option is refused if
PEFT ignores it. `tests/methods/test_peft.py` tries all kinds and options of PEFT 0.21; add a kind
of a newer version only after such a test.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank_study.errors import InputError
from lowrank_study.methods.layers.linear import check_rank
from lowrank_study.methods.layers.modules import head_names, target_modules, task_of
from lowrank_study.methods.peft import PeftMethod
from lowrank_study.spec import BaseModel

TRAINED = (
    *("ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA"),
    *("HIRA", "HRA", "IA3", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT"),
    *("PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "UNILORA", "VBLORA"),
    *("VERA", "WAVEFT"),
)
"""Kinds whose training, saving and loading are tested."""

_REFUSED = {
    "ADALORA": "allocates ranks in calls after each step and adds a term to the loss; this "
    "training loop does neither, so no rank would ever change",
    "LILY": "shares its factors among modules of one name, but modules are given by their full "
    "paths here: nothing would be shared",
    "LN_TUNING": "trains norms, but the modules of method.target are linear maps",
    "POLY": "needs a task number with every text",
    "SHADOW": "runs a second network beside a decoder's layers; linear maps can't be its target",
    "TRAINABLE_TOKENS": "trains only rows of an embedding, no linear map and no new head",
    "XLORA": "mixes adapters that are trained already",
    **dict.fromkeys(
        (
            *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING"),
            *("PROMPT_TUNING", "P_TUNING"),
        ),
        "trains virtual tokens in place of a target, which can't be done here",
    ),
}
_DATA_PASS = "needs a pass over the data before training, which this training loop doesn't make"
_STARTS = {
    "eva": _DATA_PASS,
    "corda": _DATA_PASS,
    "lora_ga": _DATA_PASS,
    "loftq": "starts from a quantised base model, but the base isn't quantised here",
    "false": "starts from a random update instead of the pretrained model",
}
_BY_PATH = "PEFT ignores it for modules given by their paths: name layers in method.target"
_QUANTISED = "the base isn't quantised here"
_LOSS_TERM = "needs a term in the loss that this training loop doesn't add"
_STEP_CALLS = "needs calls after each step that this training loop doesn't make"
_IGNORED_BY_ALL = {
    "target_modules": "set method.target instead",
    "exclude_modules": "leave the modules out of method.target",
    "layers_to_transform": _BY_PATH,
    "layers_pattern": _BY_PATH,
    "fan_in_fan_out": "it is set from the model",
    "inference_mode": "nothing would be trained",
    "use_effective_conv2d": "it applies only to convolutions, and targets are linear maps",
}
_IGNORED = {
    "ADAMSS": dict.fromkeys(
        (
            *("use_asa", "asa_target_subspaces", "asa_importance_beta", "asa_uncertainty_beta"),
            *("asa_schedule_exponent", "init_warmup", "final_warmup", "mask_interval"),
        ),
        _STEP_CALLS,
    ),
    "BOFT": {"boft_n_butterfly_factor": "PEFT sets it to 1 without its CUDA extension"},
    "HIRA": {"rank_pattern": "PEFT 0.21 ignores it"},
    "LORA": {
        "alora_invocation_tokens": "it is for text generation",
        "arrow_config": "it routes between adapters that are trained already",
        "ensure_weight_tying": "it is for tied embeddings, which are no targets here",
        "layer_replication": "it changes the base model",
        "runtime_config": "it does nothing while training",
        "target_parameters": "set method.target instead",
        "trainable_token_indices": "rows of an embedding are no target here",
        "use_bdlora": "it shards factors over devices",
        "velora_config": "it approximates gradients, which was never tried here",
        **dict.fromkeys(("corda_config", "eva_config", "lora_ga_config"), _DATA_PASS),
        **dict.fromkeys(("kasa_config", "monteclora_config"), _LOSS_TERM),
        **dict.fromkeys(("loftq_config", "qalora_group_size", "use_qalora"), _QUANTISED),
        **dict.fromkeys(("megatron_config", "megatron_core"), "it is for Megatron's layers"),
    },
    "OFT": {"module_dropout": "PEFT 0.21 never applies it"},
    "OSF": {"target_svd_config": "PEFT 0.21 ignores it"},
    "PVERA": {"sample_at_inference": "predictions would change from one evaluation to the next"},
}
"""Refused options by kind, with the reason."""

_ONLY_WITH: dict[str, dict[str, tuple[str, Any]]] = {
    "ADAMSS": {"svd_threshold": ("use_dynamic_rank", True)},
    "DEFT": {"init_scale": ("init_weights", False)},
    "MISS": {"mini_r": ("init_weights", "mini")},
    "OFT": {"eps": ("coft", True), "num_cayley_neumann_terms": ("use_cayley_neumann", True)},
    "PSOFT": {
        "cayley_neumann_eps": ("use_cayley_neumann", True),
        "num_cayley_neumann_terms": ("use_cayley_neumann", True),
        "psoft_svd_lowrank_niter": ("psoft_svd", "lowrank"),
        "random_seed": ("psoft_svd", "lowrank"),
    },
    "TINYLORA": {"init_v_bound": ("init_weights", "uniform")},
}
"""Options that PEFT reads only if another option has a certain value."""


def add_peft(model: nn.Module, method: PeftMethod, base: BaseModel) -> nn.Module:
    """Return the model with PEFT's adapter on its targets; its new head is trained and saved.

    Raises:
        InputError: PEFT would not train the kind or an option as it says, or can't put it on this
            model.
    """
    import peft

    modules = target_modules(model, base, method.target)
    defaults = _check(method, modules, model)
    options = dict(method.options)
    if method.peft_type == "IA3":
        options["feedforward_modules"] = _feedforward(method, model, modules, base)
    if "fan_in_fan_out" in defaults:
        stored_in_out = [isinstance(model.get_submodule(name), Conv1D) for name in modules]
        options["fan_in_fan_out"] = any(stored_in_out)
    saved = [*head_names(model), *(options.get("modules_to_save") or ())]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = peft.get_peft_config(
                {
                    "peft_type": method.peft_type,
                    "task_type": task_of(model).peft_task_type,
                    "target_modules": list(modules),
                    **options,
                    "modules_to_save": list(saved),
                }
            )
            adapted: nn.Module = peft.get_peft_model(model, config)
    except Exception as error:  # a user's options may raise any type inside the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"PEFT can't put {method.peft_type} with method.options={dict(method.options)} on this "
            f"model: {reason} Choose another kind, other options or another method.target"
        ) from error
    ignored = [str(warning.message) for warning in caught if "ignor" in str(warning.message)]
    if ignored:
        raise InputError(f"method.options: PEFT says of {method.peft_type}: {ignored[0][:200]}")
    _check_trained(adapted, modules, saved)
    return adapted


def _feedforward(
    method: PeftMethod, model: nn.Module, modules: Sequence[str], base: BaseModel
) -> list[str]:
    """Return the paths of the modules whose input IA3 scales; it scales the others' output.

    PEFT itself would save them as suffixes of names, which it refuses to load.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as KNOWN

    given = method.options.get("feedforward_modules")
    if given is not None:
        names = [given] if isinstance(given, str) else given
        setting = "method.options.feedforward_modules"
        return target_modules(model, base, names, setting=setting) if names else []
    config: Any = model.config
    if config.model_type not in KNOWN:
        raise InputError(
            f"method.options.feedforward_modules is missing, and PEFT has no default for "
            f"{config.model_type}: list the targets whose input IA3 scales, or give [] for none"
        )
    endings = tuple(KNOWN[config.model_type])
    return [module for module in modules if module.endswith(endings)]


def _check(method: PeftMethod, modules: Sequence[str], model: nn.Module) -> Mapping[str, Any]:
    """Refuse a kind or an option that PEFT would misread, and return the kind's defaults."""
    import peft

    kind = method.peft_type
    known = {each.value: config for each, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in TRAINED:
        reason = (
            _REFUSED.get(kind, "was never tried here") if kind in known else "is not a PEFT method"
        )
        raise InputError(f"method.peft_type={kind}: {kind} {reason}. Valid: {', '.join(TRAINED)}")
    fields = dataclasses.fields(known[kind])
    settings = {field.name: field.default for field in fields}
    flags = {field.name for field in fields if field.type in (bool, "bool")}
    of_every_kind = {field.name: "it is set here" for field in dataclasses.fields(peft.PeftConfig)}
    refused = {**of_every_kind, **_IGNORED_BY_ALL, **_IGNORED.get(kind, {})}
    valid = ", ".join(sorted(set(settings) - set(refused)))
    given = {**settings, **method.options}
    for option, value in method.options.items():
        name = f"method.options.{option}"
        if option not in settings:
            raise InputError(f"{name} is not an option of {kind}. Valid: {valid}")
        if option in refused:
            raise InputError(f"{name}: {refused[option]}. Valid for {kind}: {valid}")
        other, needed = _ONLY_WITH.get(kind, {}).get(option, (option, value))
        if given[other] != needed:
            raise InputError(
                f"{name}: {kind} reads it only if method.options.{other} is {needed!r}: set "
                "that too, or leave it out"
            )
        # Hydra reads YAML's `no` as a text, which PEFT would take for true.
        is_like = isinstance(value, bool) if option in flags else _is_like(value, settings[option])
        if not is_like:
            raise InputError(f"{name}={value!r}: a value like {settings[option]!r} is needed")
        if option.endswith("_pattern"):
            _check_patterns(name, value, modules)
    if kind == "LORA":
        _check_start(method.options.get("init_lora_weights"))
    if method.adapter_rank is not None:
        for module in modules:
            check_rank(method.adapter_rank, model.get_submodule(module), module)
    return settings


def _is_like(value: Any, default: Any) -> bool:
    """Return whether a value has the default's type; PEFT would fail only during training."""
    if isinstance(default, bool):
        return isinstance(value, bool | str)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return True


def _check_start(value: Any) -> None:
    name = str(value).lower()
    reason = _STARTS.get(name)
    if name.startswith("pissa_niter"):
        reason = "starts from a random decomposition, which differs when the adapter is loaded"
    if reason:
        raise InputError(
            f"method.options.init_lora_weights={value!r}: it {reason}. Valid: true, gaussian, "
            "pissa, olora, orthogonal, mica"
        )


def _check_patterns(name: str, patterns: Any, modules: Sequence[str]) -> None:
    """Refuse a pattern that matches no adapted module, because PEFT would ignore it."""
    if not isinstance(patterns, Mapping):
        raise InputError(f"{name}={patterns!r}: a mapping from module names to values is needed")
    for pattern in patterns:
        try:
            matches = [module for module in modules if re.match(rf"(.*\.)?({pattern})$", module)]
        except re.error as error:
            raise InputError(f"{name}: {pattern!r} is not a regular expression: {error}") from error
        if not matches:
            raise InputError(
                f"{name}: {pattern!r} matches none of the adapted modules, which end in "
                f"{', '.join(sorted({module.rpartition('.')[2] for module in modules}))}"
            )


def _check_trained(adapted: nn.Module, modules: Sequence[str], saved: Sequence[str]) -> None:
    """Refuse a model on which PEFT, which matches ends of names, adapted other modules."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    def of(kind: type) -> list[str]:
        return [
            name.removeprefix("base_model.model.")
            for name, module in adapted.named_modules()
            if isinstance(module, kind)
        ]

    if missing := sorted(set(modules) - set(of(BaseTunerLayer))):
        raise InputError(f"PEFT does not adapt {missing[0]}: leave it out of method.target")
    found = [f".{name}" for name in of(ModulesToSaveWrapper)]
    for name in saved:
        if not any(path.endswith(f".{name}") for path in found):
            raise InputError(f"method.options.modules_to_save: the model has no module {name!r}")
    for path in found:
        if not any(path.endswith(f".{name}") for name in saved):
            raise InputError(
                f"PEFT would also train {path[1:]} in full, because of its name: choose "
                "method=lora or method=full for this model"
            )
