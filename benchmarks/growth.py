"""Measure how the cost of training grows with runs, rank, text length, model size and examples.

Every point is a separate process on one core. `growth.csv` has the numbers, each written as soon as
it is measured, and `growth.svg` the figure. The memory that the suite predicts before training is
compared with the measured one.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import timing
from matplotlib.axes import Axes
from processes import train_here
from rows import Rows
from steps import hardware

from lowrank_study.config.run import compose
from lowrank_study.loaded import model_folder
from lowrank_study.reporting.drawing.figure import INK, Paper, draw_figure, line
from lowrank_study.reporting.drawing.rank_axis import series_colour
from lowrank_study.reporting.drawing.svg import LIGHT, file_svg
from lowrank_study.spec import RunSpec

BASE = (
    *("task.train_size=128", "task.validation_size=16", "task.test_size=16"),
    *("model.dropout=0.0", "method.rank=8", "data_seed=0"),
)
LONG_TEXTS = ("task=newsgroups", *BASE, "task.train_size=64")
MODELS = ((2, 128), (4, 256), (6, 384), (8, 512), (12, 768))
"""Layers and width of BERTs with random weights, which don't affect the cost of a step."""
AXES = {
    "runs at once": "runs",
    "adapter rank": "rank, on all linear maps",
    "longest text": "tokens",
    "model": "million parameters",
    "examples": "training examples",
}
LINEAR = ("runs at once", "examples")
"""Axes that aren't logarithmic, so that growth in proportion is a straight line."""


def growth(folder: Path, *, quick: bool) -> list[timing.Figure]:
    """Measure, draw, and compare predicted with measured memory."""
    precision, rows = compose().train.precision, Rows(folder / "growth.csv")
    with tempfile.TemporaryDirectory() as models:
        points = [
            rows.measured(
                {"axis": axis, "at": at, "precision": precision},
                lambda specs=specs: _measured(specs),
            )
            for axis, at, specs in _points(Path(models), quick=quick)
        ]
    frame = pd.DataFrame(points)
    (folder / "growth.svg").write_text(_drawn(frame))
    title = f"{precision} ({hardware(precision)})"
    off = (frame["predicted_bytes"] / frame["peak_bytes"] - 1.0).abs()
    figures = [
        timing.figure(
            f"{title}: predicted memory, largest error of {len(off)} points",
            [100 * float(off.max())],
            unit="%",
            at_most=15.0,
        ),
        timing.figure(
            f"{title}: predicted memory, mean error", [100 * float(off.mean())], unit="%"
        ),
    ]
    for axis, rows in frame.groupby("axis", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        for column, what in (("seconds", "time"), ("peak_bytes", "memory")):
            label = f"{title}: {axis} from {first['at']:g} to {last['at']:g}: growth of {what}"
            figures.append(timing.figure(label, [last[column] / first[column]], unit="×"))
    return figures


def _points(models: Path, *, quick: bool) -> Sequence[tuple[str, float, list[RunSpec]]]:
    def few(values: Sequence[int]) -> Sequence[int]:
        return values[:2] if quick else values

    points: list[tuple[str, float, list[RunSpec]]] = [
        ("runs at once", runs, [compose(*BASE, f"seed={seed}") for seed in range(runs)])
        for runs in few((1, 2, 4, 8))
    ]
    points += [
        ("adapter rank", rank, [compose("method=lora_all_linear", *BASE, f"method.rank={rank}")])
        for rank in few((1, 8, 32, 128))
    ]
    points += [
        ("longest text", length, [compose(*LONG_TEXTS, f"task.max_length={length}")])
        for length in few((32, 64, 128, 256, 512))
    ]
    points += [
        ("examples", count, [compose(*BASE, f"task.train_size={count}")])
        for count in few((64, 128, 256, 512))
    ]
    for layers, width in MODELS[:2] if quick else MODELS:
        parameters = _make_bert(models / f"{layers}x{width}", layers, width)
        spec = compose(*BASE, f"model.source={models / f'{layers}x{width}'}")
        points.append(("model", parameters / 1e6, [spec]))
    return points


def _make_bert(folder: Path, layers: int, width: int) -> int:
    """Save a BERT with random weights and MiniLM's tokenizer, and count its parameters."""
    from transformers import AutoModel, AutoTokenizer, BertConfig

    source = model_folder(compose().model)
    config = BertConfig.from_pretrained(
        source,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
    )
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return int(model.num_parameters())


def _measured(specs: list[RunSpec]) -> dict[str, float]:
    found = train_here(specs)
    return {key: found[key] for key in ("seconds", "peak_bytes", "predicted_bytes")}


def _drawn(frame: pd.DataFrame) -> str:
    def draw(on: Paper) -> None:
        names = list(AXES)
        panels = on.panels(2 * len(names), across=(len(names), 2), height=(1.9, 1.7))
        for number, name in enumerate(names):
            rows = frame[frame["axis"] == name].sort_values("at")
            time, memory = panels[number], panels[number + len(names)]
            time.set_title(name)
            time.plot(
                rows["at"], rows["seconds"], marker="o", ms=4, clip_on=False, color=series_colour(0)
            )
            memory.plot(
                rows["at"], rows["peak_bytes"] / 1e6, marker="o", ms=4, clip_on=False, color=INK
            )
            memory.plot(
                *(rows["at"], rows["predicted_bytes"] / 1e6),
                **{"marker": "x", "ms": 5, "ls": ":", "clip_on": False, "color": series_colour(1)},
            )
            memory.set_xlabel(AXES[name])
            for panel in (time, memory):
                _dress(panel, name, list(rows["at"]))
        panels[0].set_ylabel("training, s")
        panels[len(names)].set_ylabel("peak memory, MB")
        on.legend(
            [
                line("time", series_colour(0), marker="o", ms=4),
                line("memory, measured", INK, marker="o", ms=4),
                line("memory, predicted", series_colour(1), marker="x", ms=5, ls=":"),
            ],
            columns=(3, 1),
        )

    figure = draw_figure(
        draw, name="growth", title="", caption="", note="", frame=frame, columns=()
    )
    return file_svg(figure.wide, LIGHT)


def _dress(panel: Axes, name: str, measured: list[float]) -> None:
    """Start at zero, and label measured values, as many as there is room for."""
    panel.set_ylim(bottom=0)
    if name in LINEAR:
        panel.set_xlim(left=0)
        ticks = [0, *(at for at in measured if at >= max(measured) / 2)]
    else:
        panel.set_xscale("log", base=2)
        ticks = measured[:: 2 if len(measured) > 4 else 1]
    panel.set_xticks(ticks, [f"{at:.0f}" for at in ticks])
    panel.minorticks_off()
    panel.locator_params(axis="y", nbins=4)
