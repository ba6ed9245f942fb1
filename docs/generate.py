"""Write the parts of the documentation that come from the code and from `conf/`.

    python docs/generate.py    # or: make docs

`settings.md` lists every setting with its default and the comment that stands beside it in `conf/`.
The table in `measures.md` lists the rows of `lowrank_study/spectra/measures.py`.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.usage import meanings_in
from lowrank_study.spectra.measures import MEASURES

DOCS = Path(__file__).parent
START, END = "<!-- measures: written by docs/generate.py -->", "<!-- end of measures -->"
COMMANDS = {
    "config": "experiments/train.py",
    "truncate": "experiments/truncate.py",
    "reproduce": "experiments/reproduce.py",
    "show_progress": "analysis/show_progress.py",
    "report": "analysis/report.py",
    "record": "analysis/record.py",
    "measure_spectra": "analysis/measure_spectra.py",
    "measure_controls": "analysis/measure_controls.py",
    "measure_forgetting": "analysis/measure_forgetting.py",
    "estimate_memory": "analysis/estimate_memory.py",
    "check_claims": "analysis/check_claims.py",
}
GROUPS = {
    "task": ("hub", "file", "texts"),
    "model": ("bert",),
    "method": ("full", "lora", "peft"),
    "trainer": ("one_epoch",),
    "tuning": ("grid", "race"),
    "stopping": ("sequential",),
}
"""Files that show most settings of a group. Settings that only others have are added after them."""
INTRODUCTION = """# Settings

Every setting of every command, with its default. `python COMMAND --help` shows the same on the
command line. The texts come from the comments in `conf/`, and `make docs` writes this page again.
`???` means that you must give a value.
"""


def main() -> None:
    """Write both pages."""
    (DOCS / "settings.md").write_text(settings_page())
    (DOCS / "measures.md").write_text(with_measures((DOCS / "measures.md").read_text()))


def settings_page() -> str:
    """Return the page with every setting."""
    parts = [INTRODUCTION]
    for config, script in COMMANDS.items():
        parts += [f"## `{script}`\n", settings_table(CONF_FOLDER / f"{config}.yaml", "")]
    for group, files in GROUPS.items():
        parts.append(f"## `{group}=`\n")
        parts.append(f"Each file of [`conf/{group}/`](../conf/{group}) is a choice.\n")
        for file in described(group, files):
            parts += [f"### `{group}={file.stem}`\n", settings_table(file, f"{group}.")]
    return "\n".join(parts)


def described(group: str, first: Sequence[str]) -> list[Path]:
    """Return files of a group that between them have every setting, `first` at their head."""
    folder = CONF_FOLDER / group
    shown = [folder / f"{name}.yaml" for name in first]
    known = {name for file in shown for name in meanings_in(file)}
    for file in sorted(folder.glob("*.yaml")):
        if set(OmegaConf.load(file)) - {"defaults"} - known:
            shown.append(file)
            known |= set(meanings_in(file))
    return shown


def settings_table(file: Path, prefix: str) -> str:
    """Return the settings in a file of `conf/` as a table, without choices of groups."""
    values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(values, dict)
    lines = ["| Setting | Default | Meaning |", "| --- | --- | --- |"]
    for name, meaning in meanings_in(file).items():
        if name in values:
            lines.append(f"| `{prefix}{name}` | `{written(values[name])}` | {cell(meaning)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return text.replace("|", "\\|")


def written(value: object) -> str:
    """Return a value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{…}"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) or '""'


def with_measures(page: str) -> str:
    """Return the page of measures with the table of today's measures."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    lines = ["| Measure | Formula | On n × n Gaussian noise |", "| --- | --- | --- |"]
    lines += [
        f"| `{m.name}` | {cell(m.meaning)} | {m.on_noise} |"
        for m in MEASURES
        if m.group not in ("base", "other")
    ]
    lines += ["", "With `compare_with_base=true` or `other=`, a measured report also has:", ""]
    lines += ["| Measure | Formula |", "| --- | --- |"]
    lines += [
        f"| `{m.name}` | {cell(m.meaning)} |" for m in MEASURES if m.group in ("base", "other")
    ]
    return "\n".join([head + START, "", *lines, "", END + tail])


if __name__ == "__main__":
    main()
