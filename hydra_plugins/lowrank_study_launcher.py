"""Hydra's `-m` for this project: plan every job in the run store, then let workers claim them."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class WorkersLauncher(Launcher):  # type: ignore[misc]  # hydra has no types
    """Composes all jobs of a multirun before the first starts: one bad job and none is run."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what is needed to compose the jobs; only training is swept.

        Raises
        ------
        InputError
            Another command was given an experiment, or `-m`: it would train, not report.
        """
        from lowrank_study.errors import InputError

        if not getattr(task_function, "is_swept", False):
            raise InputError("this command has no sweeps: name the sweep, as in sweep=NAME")
        self._loader = hydra_context.config_loader
        self._config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose, check, plan and run the jobs; equal ones are one run."""
        from lowrank_study.jobs import JobComposer
        from lowrank_study.study.sweep import sweep_of

        composer = JobComposer(self._loader, self._config)
        sweep_of([config for overrides in job_overrides for config in composer.configs(overrides)])
        jobs = []
        for overrides in job_overrides:
            job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            job.return_value = None
            jobs.append(job)
        return jobs
