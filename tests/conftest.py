"""Fixtures that many tests share, such as tiny models of every family."""

import importlib.util
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrank_study.assets import cache_folder

for library in ("OMP", "MKL", "OPENBLAS"):  # two test processes share two cores
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = [f"word{n}" for n in range(40)] + ["good", "fine", "bad", "poor"]

_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TINY = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24},
    "llama": {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2},
    "opt": {**_BERT, "ffn_dim": 24, "word_embed_proj_dim": 16},
}


def make_tiny_model(family: str, folder: Path, *, is_causal: bool = False, **sizes: object) -> Path:
    """Write a randomly initialised model of a family, with a word-level tokenizer.

    The default sizes are those of `TINY`. A causal language model has a vocabulary's scores and
    an end token.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family != "llama":  # decoders have no first token of their own
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if is_causal:
        names |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
        n_positions=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **(sizes or TINY[family]),
    )
    torch.manual_seed(0)
    loader = AutoModelForCausalLM if is_causal else AutoModel
    loader.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny model of a family, made once."""
    made: dict[str, Path] = {}

    def give(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return give


@pytest.fixture(scope="session")
def tiny_causal_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the folder of a tiny causal language model of a family and given settings, made once."""
    made: dict[str, Path] = {}

    def give(family: str, **settings: object) -> Path:
        key = f"{family} {settings}"
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            made[key] = make_tiny_model(
                family, folder, is_causal=True, **{**TINY[family], **settings}
            )
        return made[key]

    return give


@pytest.fixture(scope="session")
def sized_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny model of any family with given sizes, and return its folder."""

    def give(family: str, **sizes: object) -> Path:
        return make_tiny_model(family, tmp_path_factory.mktemp(family), **sizes)

    return give


@pytest.fixture(scope="session")
def review_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a CSV of 240 made-up reviews whose verdict is in one of their words."""
    generator = random.Random(0)
    lines = ["text,verdict,film"]
    for row in range(240):
        verdict = generator.choice(["up", "down"])
        words = generator.choices(WORDS[:40], k=generator.randint(3, 12))
        words[generator.randrange(len(words))] = generator.choice(
            ["good", "fine"] if verdict == "up" else ["bad", "poor"]
        )
        lines.append(f"{' '.join(words)},{verdict},film{row // 4}")
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tiny_overrides(tiny_model: Callable[[str], Path], review_file: Path) -> list[str]:
    """Give the overrides of a run on the tiny BERT and the made-up reviews."""
    return [
        "model=bert",
        f"model.source={tiny_model('bert')}",
        "model.name=tiny",
        "task=file",
        f"task.source={review_file}",
        "task.name=reviews",
        "task.label_column=verdict",
        "task.group_column=film",
        "task.validation_size=40",
        "task.test_size=60",
        "method.learning_rate=1e-2",
        "trainer.precision=fp32",  # or bf16 hardware would compute other numbers
    ]


@pytest.fixture(scope="session")
def document_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a JSONL of 120 documents of 3 to 30 words; each word decides the next one."""
    generator = random.Random(0)
    documents = []
    for _ in range(120):
        first, length = generator.randrange(40), generator.randint(3, 30)
        documents.append(" ".join(WORDS[(first + place) % 40] for place in range(length)))
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def causal_overrides(
    tiny_causal_model: Callable[..., Path], document_file: Path
) -> Callable[..., list[str]]:
    """Return a function that gives the overrides of a run on a tiny language model."""

    def overrides(family: str = "llama", **settings: object) -> list[str]:
        return [
            f"model={family}",
            f"model.source={tiny_causal_model(family, **settings)}",
            "model.name=tiny",
            "task=texts",
            f"task.source={document_file}",
            "task.validation_size=20",
            "task.test_size=20",
            "task.max_length=12",
            "model.dropout=0.0",
            "method.learning_rate=1e-2",
            "trainer.precision=fp32",
        ]

    return overrides


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Give the tests their own cache; compiled C code stays in the user's, as it takes minutes."""
    if "real_cache" in request.fixturenames:
        return
    own, compiled = tmp_path_factory.getbasetemp() / "cache", cache_folder() / "native"
    if not own.exists():
        compiled.mkdir(parents=True, exist_ok=True)
        own.mkdir()
        (own / "native").symlink_to(compiled)
    monkeypatch.setenv("LOWRANK_STUDY_CACHE", str(own))


@pytest.fixture
def real_cache() -> None:
    """Use the user's cache in this test, for the pinned model and data."""


RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs a command in this process and returns code, output and errors."""

    def run(script: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        try:
            main_of(script)()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code or 0, told.out, told.err

    return run


def main_of(script: str) -> Callable[[], None]:
    """Load a script such as `analysis/report.py` and return its main."""
    name = f"commands_{Path(script).stem}"
    if name not in sys.modules:
        place = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / script)
        assert place is not None
        assert place.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(place)
        place.loader.exec_module(sys.modules[name])
    main: Callable[[], None] = sys.modules[name].main
    return main


_FULL = ("method=full", "method.learning_rate=5e-3")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `results` trains into once."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def results(trained: Path, tiny_overrides: list[str], tmp_path: Path) -> Path:
    """Return a copy of a folder with the sweep `two`: two seeds of full fine-tuning, measured."""
    from lowrank_study.config.run import compose
    from lowrank_study.sweeps.sweep import sweep

    if not (trained / "runs").is_dir():
        specs = [compose(*tiny_overrides, *_FULL, f"seed={seed}") for seed in (0, 1)]
        sweep(specs, name="two", results=trained, device="cpu", launcher="inline")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path
