"""The documentation is true: its commands run, its links resolve, and its lists are complete.

A fenced block without a language holds commands. They run in the order of their page, in a folder
of their own, with a tiny model and tiny data instead of the real ones, which take minutes.
"""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.grids import planned_configs
from lowrank_study.config.run import composed
from lowrank_study.config.usage import meanings_in
from tests.conftest import RunCommand

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "results").rglob("*.md")),
]
GUIDES = ("README.md", "docs/getting_started.md")
"""Pages whose commands train and analyse."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SIZES = ("task.train_size=64", "task.validation_size=20", "task.test_size=20")
WORKING = (
    "experiments/train.py",
    "experiments/truncate.py",
    "analysis/measure_controls.py",
)
"""Commands that start workers."""
WIDE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
"""A tiny model that is wide enough for rank 64."""
OWN_DATA = {
    "reviews.csv": "text,stars\n" + "good film,5\nbad film,1\n" * 100,
    "exam.csv": "question,A,B,key\n2 + 2?,4,5,A\n",
    "questions.jsonl": '{"question": "2 + 2?", "answer": "4"}\n',
}


def generator() -> ModuleType:
    """Load `docs/generate.py`, which is a script."""
    place = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page, each as its words."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------- quick


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text()) <= 6000


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in OWN_DATA.items():
        Path(name).write_text(text)
    configs = {script: config for config, script in generator().COMMANDS.items()}
    for program, *words in commands(page):
        if program == "make":
            target = next(word for word in words if "=" not in word)
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M)
        elif program == "python":
            script, *arguments = words
            assert (ROOT / script).is_file(), script
            flags = [word for word in arguments if word.startswith("--")]
            overrides = [word for word in arguments if not word.startswith("-")]
            if script == "experiments/train.py":
                assert planned_configs(*overrides, is_grid="-m" in arguments)
            elif script in configs:
                assert composed(configs[script], *overrides)
            else:
                source = (ROOT / script).read_text()
                assert all(flag.partition("=")[0] in source for flag in flags), words
        else:
            assert program in ("source", ".venv/bin/pre-commit"), [program, *words]


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_settings_that_are_named_exist(page: Path) -> None:
    groups = {
        group.name: {key for file in group.glob("*.yaml") for key in meanings_in(file)}
        for group in CONF_FOLDER.iterdir()
        if group.is_dir()
    }
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for group, setting in re.findall(r"\b(task|model|method|trainer|tuning)\.(\w+)", code):
            assert setting in groups[group] | {"yaml", "py"}, code
        if "NAME" not in code and re.fullmatch(
            r"(lowrank_study|tests|conf|docs|benchmarks)/[\w/.]+", code
        ):
            assert (ROOT / code).exists(), code


def test_every_setting_is_described() -> None:
    module = generator()
    files = [CONF_FOLDER / f"{name}.yaml" for name in module.COMMANDS]
    files += [
        file for group, names in module.GROUPS.items() for file in module.described(group, names)
    ]
    missing = [f"{f.name}: {k}" for f in files for k, text in meanings_in(f).items() if not text]
    assert not missing


def test_pages_that_derive_from_the_code_are_current() -> None:
    module = generator()
    measures = (ROOT / "docs" / "measures.md").read_text()
    assert measures == module.with_measures(measures), "run: make docs"
    assert (ROOT / "docs" / "settings.md").read_text() == module.settings_page(), "run: make docs"


# ---------------------------------------------------------------- slow: every command runs


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_the_commands_of_a_guide_run(
    page: str,
    tiny_overrides: list[str],
    sized_model: Callable[..., Path],
    run_command: RunCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = sized_model("bert", **WIDE)
    tiny = [each for each in tiny_overrides if not each.startswith("model.source=")]
    for program, *words in commands(ROOT / page):
        if [program, *words] == ["make", "study"]:
            wanted = [shlex.split(line, comments=True)[1:] for line in recipe("study")]
        else:
            wanted = [words] if program == "python" else []
        for script, *arguments in wanted:
            arguments = [placeholder_filled(each, model, tmp_path) for each in arguments]
            if script == "experiments/train.py":
                arguments = with_tiny(arguments, [f"model.source={model}", *tiny])
            if script in WORKING:
                arguments.append("launcher=inline")
            code, told, errors = run_command(script, *arguments)
            # The new head is not in MODEL, so this command reports it as left out.
            expected = 1 if script == "analysis/measure_spectra.py" else 0
            assert code == expected, (words, told, errors)
    assert (tmp_path / "results" / "report" / "report.html").is_file()


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile."""
    [lines] = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    return [line.strip().removeprefix("@").partition("||")[0] for line in lines.splitlines()]


def with_tiny(arguments: list[str], tiny: list[str]) -> list[str]:
    """Return a training command with the tiny model and data, and few seeds, instead of its own."""
    experiment = any(each.startswith("experiment=") for each in arguments)
    given = [each for each in arguments if not each.startswith(("task.train_size=", "seed="))]
    left_out = "method." if experiment else "-"  # its cases set the rates
    tuned = ["tuning.most=3"] if "tuning=grid" in arguments else []
    tuned += ["stopping.first=2"] if "stopping=sequential" in arguments else []
    seeds = "seed=0,1,2" if "stopping=sequential" in arguments else "seed=0,1"
    added = [each for each in [*tiny, *SIZES] if not each.startswith(left_out)]
    return [*given, *added, *tuned, seeds]


def placeholder_filled(argument: str, model: Path, folder: Path) -> str:
    """Replace MODEL, TUNED and ADAPTER by what earlier commands of the page trained."""
    key, _, value = argument.partition("=")
    if value == "MODEL":
        return f"{key}={model}"
    pattern = {"TUNED": "*-full-*", "ADAPTER": "*-lora_*"}.get(value)
    if pattern is None:
        return argument
    return f"{key}={sorted((folder / 'results' / 'runs').glob(pattern))[0] / 'checkpoint'}"


@pytest.mark.slow
def test_the_commands_on_claims_run(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results" / "records", "results/records")
    ran = 0
    for _, script, *arguments in commands(ROOT / "docs" / "claims.md"):
        if "sweep=mine" in arguments:  # needs a sweep of whole size
            continue
        more = ["forecast=true"] if script.endswith("reproduce.py") else []
        code, told, errors = run_command(script, *arguments, *more)
        assert code == 0, (script, told, errors)
        ran += 1
    assert ran >= 3


def test_the_example_loads_an_adapter_of_a_language_model(
    causal_overrides: Callable[..., list[str]],
    run_command: RunCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = causal_overrides()
    code, _, errors = run_command("experiments/train.py", *tiny, "method.rank=2", "launcher=inline")
    assert code == 0, errors
    model = next(each for each in tiny if each.startswith("model.source=")).partition("=")[2]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(model)
    [run] = (tmp_path / "results" / "runs").glob("*-lora_*")
    [example] = blocks(ROOT / "docs" / "language_models.md", "python")
    assert 'model_folder(ls.compose("model=smollm2").model)' in example
    example = example.replace('"model=smollm2"', f'"model=llama", "model.source={model}"')
    found: dict[str, Any] = {}
    exec(example.replace("runs/RUN/", f"runs/{run.name}/"), found)
    assert found["model"].peft_config["default"].r == 2
    assert found["answer"].shape[1] > found["prompt"]["input_ids"].shape[1]


@pytest.mark.slow
def test_the_python_example_runs(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [example] = blocks(ROOT / "docs" / "getting_started.md", "python")
    assert '"task=reuters_r8", ' in example
    tiny = "".join(f"{each!r}, " for each in [*tiny_overrides, *SIZES[:3]])
    found: dict[str, object] = {}
    exec(example.replace('"task=reuters_r8", ', tiny), found)
    assert found["page"] == Path("results/report/report.html")
