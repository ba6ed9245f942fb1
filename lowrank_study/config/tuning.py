"""Read how a sweep chooses its learning rates: `tuning=grid` or `tuning=race`."""

from dataclasses import dataclass

from lowrank_study.config.fields import Fields
from lowrank_study.errors import InputError

KINDS = ("grid", "race")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Train every rate of a grid to the last step (`sweeps/grid.py`)."""

    rates: int
    """Number of rates in the first grid, around the configured one."""
    factor: float
    """Ratio of neighbouring rates."""
    seeds: tuple[int, ...]
    """Seeds of the trials."""
    final_seeds: tuple[int, ...]
    """Further seeds for the final comparison of the two best rates."""
    most: int
    """Largest number of rates; the grid grows while the best rate is at an end."""

    @property
    def every_seed(self) -> tuple[int, ...]:
        """All seeds of trials."""
        return *self.seeds, *self.final_seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Stop the trials of rates that fall behind (`sweeps/race.py`)."""

    factor: float
    """Ratio of neighbouring rates."""
    seeds: tuple[int, ...]
    """Seeds of the trials."""
    final_seeds: tuple[int, ...]
    """Further seeds, for rates that are tied."""
    rungs: int
    """Number of equal parts of a trial; validation is read after each."""
    slack: float
    """A higher rate may exceed the leader's loss by this share, times the share of steps left."""
    most: int
    """Largest number of rates; a race goes on while the best rate is at an end."""

    @property
    def every_seed(self) -> tuple[int, ...]:
        """All seeds of trials."""
        return *self.seeds, *self.final_seeds


Tuning = Grid | Race


def read_tuning(fields: Fields) -> Tuning:
    """Read the settings of one kind of tuning."""
    if fields.one_of("kind", KINDS) == "race":
        tuning: Tuning = Race(
            factor=fields.number("factor", above=1.0),
            seeds=fields.integers("seeds"),
            final_seeds=fields.integers("final_seeds"),
            rungs=fields.integer("rungs", at_least=2),
            slack=fields.number("slack", least=0.0),
            most=fields.integer("most", at_least=3),
        )
    else:
        rates = fields.integer("rates", at_least=3)
        tuning = Grid(
            rates=rates,
            factor=fields.number("factor", above=1.0),
            seeds=fields.integers("seeds"),
            final_seeds=fields.integers("final_seeds"),
            most=fields.integer("most", at_least=rates),
        )
    if not tuning.seeds or len({*tuning.every_seed}) < len(tuning.every_seed):
        raise InputError(
            f"tuning seeds {list(tuning.every_seed)}: at least one seed is needed in "
            "tuning.seeds, and no seed may occur twice"
        )
    return tuning
