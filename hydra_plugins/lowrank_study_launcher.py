"""Hydra's `-m` for this project: plan every job in the run store, then let workers claim them."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class WorkersLauncher(Launcher):  # type: ignore[misc]  # hydra has no types
    """Composes all jobs of a multirun before the first starts: one bad job and none is run."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what is needed to compose the jobs."""
        self._loader = hydra_context.config_loader
        self._config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose, check, plan and run the jobs; equal ones are one run."""
        from lowrank_study.config import plain, read_config
        from lowrank_study.study.sweep import sweep

        composed: dict[tuple[str, ...], Any] = {}
        configs = [
            read_config(plain(self._job_config(overrides, composed))) for overrides in job_overrides
        ]
        first = configs[0]
        sweep(
            [config.spec for config in configs],
            name=first.sweep,
            results=first.results,
            question=first.question,
            device=first.device,
            tracker=first.tracker,
            workers=first.workers,
            pack=first.pack,
            tuning=first.tuning,
        )
        jobs = []
        for overrides in job_overrides:
            job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            job.return_value = None
            jobs.append(job)
        return jobs

    def _job_config(self, overrides: Sequence[str], composed: dict[tuple[str, ...], Any]) -> Any:
        """Compose one job.

        Reading the YAML files again takes Hydra a fifth of a second, and the jobs of a sweep
        mostly differ in values only: files are composed once for each choice of files, and
        the values are set in a copy, as Hydra itself would set them.
        """
        parsed = OverridesParser.create(self._loader).parse_overrides(list(overrides))
        values = [override for override in parsed if self._only_sets_a_value(override)]
        files = tuple(o.input_line or "" for o in parsed if o not in values)
        if files not in composed:
            composed[files] = self._loader.load_sweep_config(self._config, list(files))
        config = composed[files].copy()
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return config

    def _only_sets_a_value(self, override: Override) -> bool:
        group = override.key_or_group.replace(".", "/")
        is_change = not (override.is_add() or override.is_delete() or override.package)
        return is_change and not self._loader.get_group_options(group)
