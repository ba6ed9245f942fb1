"""Runs a Hydra main as a command for people: one line and exit code 2 for bad input.

@command
def main(config: DictConfig) -> None: ...
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lowrank_study.errors import InputError, Unfinished


def command(
    task: Callable[[Any], None], *, config_name: str = "config", is_swept: bool = False
) -> Callable[[], None]:
    """Wrap a function of a composed configuration into a `main()` on `conf/config.yaml`.

    What people get wrong (an `InputError`, an override Hydra does not know, a full disk) is
    one line on standard error and exit code 2; a defect keeps its traceback.
    `config_name` names another file of `conf/` to start from; `is_swept` is for the one command
    that `-m` and experiments make many runs of.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print
    if not sys.stderr.isatty():  # in a log, a progress bar is noise around the one line that counts
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import hydra

    from lowrank_study.config import CONF_FOLDER

    def guarded(config: Any) -> None:
        with _told_to_people():  # inside, since Hydra prints a line of its own on an exception
            task(config)

    guarded.is_swept = is_swept  # type: ignore[attr-defined]  # for the launcher
    configured = hydra.main(str(CONF_FOLDER), config_name, version_base="1.3")(guarded)

    def main() -> None:
        with _told_to_people():
            configured()

    return main


@contextmanager
def _told_to_people() -> Iterator[None]:
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        yield
    except InputError as error:
        _refuse(str(error))
    except Unfinished as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except MissingMandatoryValue as error:
        _refuse(f"{error.full_key} has no value: give one, as in {error.full_key}=VALUE")
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(" ".join(str(error).split()))
    except ValueError as error:
        if "Config group override must be" not in str(error):  # Hydra's, of GROUP=null
            raise
        _refuse("a group of settings can't be null: leave it out by ~GROUP, as in ~tuning")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _refuse(f"no space left on the disk: {error.filename or 'free some'}, then run it again")
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept; rerun to resume", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
