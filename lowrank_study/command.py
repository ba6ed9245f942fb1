"""Runs a Hydra main as a command for people: one line and exit code 2 for bad input.

@command
def main(config: DictConfig) -> None: ...
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from lowrank_study.errors import InputError


def command(task: Callable[[Any], None]) -> Callable[[], None]:
    """Wrap a function of a composed configuration into a `main()` on `conf/config.yaml`.

    What people get wrong (an `InputError`, an override Hydra does not know, a full disk) is
    one line on standard error and exit code 2; a defect keeps its traceback.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lowrank_study.config import CONF_FOLDER

    wrapped = hydra.main(str(CONF_FOLDER), "config", version_base="1.3")(task)

    def main() -> None:
        try:
            wrapped()
        except InputError as error:
            _refuse(str(error))
        except (HydraException, OmegaConfBaseException) as error:
            cause = error.__cause__ if isinstance(error.__cause__, InputError) else error
            _refuse(" ".join(str(cause).split()))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _refuse(
                f"no space left on the disk: {error.filename or 'free some'}, then run it again"
            )
        except KeyboardInterrupt:
            sys.exit(
                "\ninterrupted; what has ended is kept, and the same command goes on from there"
            )

    return main


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
