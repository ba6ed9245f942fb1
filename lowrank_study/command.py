"""Runs a main as a command for people: its settings, its help, its refusals and its exit codes.

    main = command(report, config_name="report")

| code | meaning |
| ---: | --- |
| 0 | all done |
| 1 | some runs failed or diverged, or a part of the input was left out; each is listed |
| 2 | bad input: one line that says what, and what to do |
| 130 | interrupted |
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from lowrank_study.errors import InputError, Unfinished
from lowrank_study.files import os_error_message

if TYPE_CHECKING:
    from lowrank_study.arguments import Arguments
    from lowrank_study.config import RunConfig


def command(task: Callable[[Mapping[str, Any]], None], *, config_name: str) -> Callable[[], None]:
    """Wrap a function of a composed configuration into a `main()`.

    `config_name` names the file of `conf/` with its settings. What people get wrong (an
    `InputError`, an unknown setting, a path that can't be written) is one line on standard error
    and exit code 2; a defect keeps its traceback.
    """

    def once(arguments: "Arguments") -> None:
        from lowrank_study.config import composed

        if arguments.is_grid or any(each.startswith("experiment=") for each in arguments.overrides):
            raise InputError("this command has no sweeps: name the sweep, as in sweep=NAME")
        task(composed(config_name, *arguments.overrides))

    return _main(task, config_name, once)


def sweep_command(task: Callable[[Sequence["RunConfig"]], None]) -> Callable[[], None]:
    """Wrap a function of all runs that a command line plans into a `main()`; see `command`."""

    def planned(arguments: "Arguments") -> None:
        from lowrank_study.jobs import planned_configs

        task(planned_configs(*arguments.overrides, is_grid=arguments.is_grid))

    return _main(task, "config", planned)


def _main(
    task: Callable[..., None], config_name: str, run: Callable[["Arguments"], None]
) -> Callable[[], None]:
    def main() -> None:
        with told_to_people():
            from lowrank_study.arguments import read_arguments

            arguments = read_arguments(sys.argv[1:])
            if arguments.wants_help:
                from lowrank_study.usage import usage

                about = sys.modules[task.__module__].__doc__ or ""
                print(usage(about, config_name, arguments.overrides))
            elif arguments.wants_settings:
                from omegaconf import OmegaConf

                from lowrank_study.composition import composer_of

                config = composer_of(config_name).config(arguments.overrides)
                print(OmegaConf.to_yaml(config), end="")
            else:
                run(arguments)

    return main


@contextmanager
def told_to_people() -> Iterator[None]:
    """Turn what goes wrong within into one line and an exit code."""
    _take_any_text()
    if not sys.stderr.isatty():  # in a log, a progress bar is noise around the one line that counts
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _end(2, f"error: {_one_line(str(error))}")
    except Unfinished as error:
        _end(1, str(error))
    except KeyboardInterrupt:
        _end(130, "interrupted: finished runs are kept; rerun to resume")
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _end(2, "error: out of memory: ask for less at once, as by workers=1 or pack=1")
    except Exception as error:
        message = os_error_message(error)
        if message is None:
            raise
        _end(2, f"error: {_one_line(message)}")
    finally:
        signal.signal(signal.SIGTERM, before)


def _take_any_text() -> None:
    """Let no letter that a terminal lacks (Δ on an ASCII one) end a command or its workers."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"


def _stop(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _one_line(text: str) -> str:
    """Names of files may have line breaks in them."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _end(code: int, message: str) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr)
    sys.exit(code)
