"""The rank of W − W0 while a model is trained: 90 % energy rank against steps, a line a role.

    figure = rank_along_training(data)     # None where no run was watched

Only measured steps are joined; nothing is smoothed.
"""

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lowrank_study.reporting.columns import ROLE
from lowrank_study.reporting.display import Column, printable
from lowrank_study.reporting.figures.drawing import Entry, Figure, Paper, draw_figure, line
from lowrank_study.reporting.figures.rank_axis import MARKERS, series_colour
from lowrank_study.reporting.shown_controls import RANK_COLUMNS
from lowrank_study.reporting.svg import SERIES
from lowrank_study.reporting.tables import SettingData, in_order
from lowrank_study.reporting.tables.controls import training_ranks

CAPTION = (
    "One run of full fine-tuning, trained once more and measured on the way: medians of the 90 % "
    "energy rank of W − W0 over the layers, for the matrices of each role. Steps at which no "
    "matrix of a role stands above the rounding of its weights have no mark. Adam’s first step "
    "moves every weight by about the rate, however small its gradient."
)


def rank_along_training(data: SettingData) -> Figure | None:
    """Draw the 90 % energy rank of the updates against the optimizer's steps."""
    table = training_ranks(data)
    if not table["median_energy_rank_90"].notna().any():
        return None
    roles = in_order(table.loc[table["role"] != "", "role"])
    steps = sorted({int(step) for step in table["step"]})

    def draw(on: Paper) -> None:
        panel = on.panels(1, across=(1, 1), height=(3.7, 3.9))[0]
        panel.set_xscale("log", base=2)
        for index, role in enumerate(roles):
            rows = table[(table["role"] == role) & table["median_energy_rank_90"].notna()]
            panel.plot(
                rows["step"].to_numpy(dtype=float),
                rows["median_energy_rank_90"].to_numpy(),
                color=series_colour(index),
                marker=MARKERS[index % SERIES],
                ms=4.5,
                lw=1.5,
            )
        # A label needs room: an octave just before the last step has none.
        ticks = [step for step in steps if step == steps[-1] or steps[-1] / step > 1.4]
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_ylim(bottom=0)
        panel.set_xlabel("optimizer steps")
        panel.set_ylabel("90 % energy rank of W − W0")
        on.legend(legend(), columns=(3, 2))

    def legend() -> list[Entry]:
        return [
            line(printable(role), series_colour(index), marker=MARKERS[index % SERIES], ms=4.5)
            for index, role in enumerate(roles)
        ]

    return draw_figure(
        draw,
        name=f"rank_along_training{data.suffix}",
        title="Rank of the update along training",
        caption=CAPTION,
        note=(
            "One row a step and role, or of all roles where none is named: medians over the "
            "resolvable matrices inside the layers."
        ),
        frame=table,
        columns=(
            Column("step", "step", "rank", "optimizer steps taken"),
            ROLE,
            *RANK_COLUMNS,
        ),
    )
