"""Run a main as a command, with settings, help, error messages and exit codes.

    main = command(report, config_name="report")

| code | meaning |
| ---: | --- |
| 0 | all done |
| 1 | some runs failed or diverged, or a part of the input was left out; each is listed |
| 2 | bad input: one line says what is wrong and what to do |
| 130 | interrupted |
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowrank_study.errors import InputError, Unfinished
from lowrank_study.files import os_error_message
from lowrank_study.machine import interrupted_by_sigterm

if TYPE_CHECKING:
    from lowrank_study.config.arguments import Arguments
    from lowrank_study.config.run import RunConfig


def command(task: Callable[[Mapping[str, Any]], None], *, config_name: str) -> Callable[[], None]:
    """Wrap a function of a composed configuration into a `main()`.

    Bad input prints one line on standard error and exits with code 2. A defect keeps its traceback.
    """

    def once(arguments: "Arguments") -> None:
        from lowrank_study.config.run import composed

        if arguments.is_grid or any(each.startswith("experiment=") for each in arguments.overrides):
            raise InputError("this command trains nothing: give a trained sweep, as in sweep=NAME")
        task(composed(config_name, *arguments.overrides))

    return _main(task, config_name, once)


def sweep_command(
    task: Callable[[Sequence["RunConfig"]], None], *, prepare: Callable[[], None]
) -> Callable[[], None]:
    """Wrap a function of all runs that a command line plans into a `main()`; see `command`.

    `prepare` is called before the configurations are composed, to use the time that this takes.
    """

    def planned(arguments: "Arguments") -> None:
        prepare()
        from lowrank_study.config.grids import planned_configs

        task(planned_configs(*arguments.overrides, is_grid=arguments.is_grid))

    return _main(task, "config", planned)


def _main(
    task: Callable[..., None], config_name: str, run: Callable[["Arguments"], None]
) -> Callable[[], None]:
    def main() -> None:
        with reported():
            from lowrank_study.config.arguments import read_arguments

            arguments = read_arguments(sys.argv[1:])
            if arguments.wants_help:
                from lowrank_study.config.usage import usage

                about = sys.modules[task.__module__].__doc__ or ""
                print(usage(about, config_name, arguments.overrides))
            elif arguments.wants_settings:
                from omegaconf import OmegaConf

                from lowrank_study.config.composition import composer_of

                config = composer_of(config_name).config(arguments.overrides)
                print(OmegaConf.to_yaml(config), end="")
            else:
                run(arguments)

    return main


@contextmanager
def reported() -> Iterator[None]:
    """Turn an exception into one line of output and an exit code."""
    _accept_any_text()
    if not sys.stderr.isatty():  # a log needs no progress bars
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with interrupted_by_sigterm():
            yield
        sys.stdout.flush()
    except InputError as error:
        _end(2, f"error: {_one_line(str(error))}")
    except Unfinished as error:
        _end(1, str(error))
    except KeyboardInterrupt:
        _end(130, "interrupted: finished runs are kept; rerun to resume")
    except BrokenPipeError:  # as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _end(2, "error: out of memory: set workers=1 or pack=1 to use less")
    except Exception as error:
        message = os_error_message(error)
        if message is None:
            raise
        _end(2, f"error: {_one_line(message)}")


def _accept_any_text() -> None:
    """Escape letters that a terminal can't show, such as Δ in ASCII, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"


def _one_line(text: str) -> str:
    """Escape line breaks, which names of files may contain."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _end(code: int, message: str) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr)
    sys.exit(code)
