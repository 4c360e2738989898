"""Output and errors of a job: one line per stage on rank 0, one sentence per error.

Called by every file in `launch/`. A UserError, and a refusal by the operating system (OSError with an
error number: no permission, no such file), end the process with code 1 and their sentence on stderr.
Any other exception is a fault of ours: it keeps its traceback and is called so.
"""

import argparse
import functools
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recsys.config_files import check_config_folder
from recsys.errors import UserError
from recsys.files import is_disk_full
from recsys.overrides import override, typed
from recsys.runtime.torchrun import rank_from_environment
from recsys.schema import local_path

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_START_SECONDS = time.perf_counter()


def say(text: str) -> None:
    """Print one line, preceded by the seconds since the process began; silent on other ranks."""
    if rank_from_environment() == 0:
        print(f"[{time.perf_counter() - _START_SECONDS:6.1f}s] {text}", flush=True)


class Stage:
    """Handle of a running stage: `done` sets the counts shown when it ends."""

    def __init__(self) -> None:
        self.counts = ""

    def done(self, counts: str) -> None:
        """Set what the closing line says, for example "3,000 pictures"."""
        self.counts = counts


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Print "name: counts (1.2 s)" when the block ends; nothing if it raises."""
    started = time.perf_counter()
    handle = Stage()
    yield handle
    counts = f": {handle.counts}" if handle.counts else ""
    say(f"{name}{counts} ({time.perf_counter() - started:.1f} s)")


def hydra_job(
    name: str, schemas: Sequence[type]
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a launch file's `main` from a function of the composed configuration.

    Every configuration file within reach is looked at first (recsys/config_files.py), and what the
    schemas call text is handed to Hydra as text (recsys.overrides.typed).

    Args:
        name: of the root file in configs/.
        schemas: dataclasses of the job's top-level keys; the job reads them by `read_job`.
    """

    def decorate(job: Callable[[DictConfig], None]) -> Callable[[], None]:
        composed = hydra.main(version_base=None, config_path="../configs", config_name=name)(job)

        @functools.wraps(job)
        def main() -> None:
            def check() -> None:
                arguments = with_local_config_folder(sys.argv[1:])
                check_config_arguments(arguments)
                sys.argv[1:] = typed_arguments(arguments, schemas)

            run_job(check)
            composed()

        return main

    return decorate


def with_local_config_folder(arguments: Sequence[str]) -> list[str]:
    """Return a job's arguments with the folder of --config-dir as every path is read: `~` expanded.

    Raises:
        UserError: there is no such folder.
    """
    given = _config_folder(arguments)
    if given is None:
        return list(arguments)
    folder = local_path(given, "--config-dir")
    if not folder.is_dir():
        raise UserError(f"--config-dir={given}: no such folder ({folder})")
    # The last one counts, for Hydra too.
    return [*arguments, f"--config-dir={folder}"]


def typed_arguments(arguments: Sequence[str], schemas: Sequence[type]) -> list[str]:
    """Return a job's arguments with their overrides typed by its schemas; options stay as they are.

    With --multirun a value may be a list of choices, and every value is left to Hydra.

    Raises:
        UserError: an override of a key that the job does not have.
    """
    multirun = "--multirun" in arguments or "-m" in arguments
    own = _config_folder(arguments)
    folders = [_CONFIGS] if own is None else [_CONFIGS, own]
    written = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-") or before in _OPTIONS_WITH_VALUE:
            written.append(argument)
        else:
            written += typed(
                [argument],
                schemas,
                lambda k: any((f / k).is_dir() for f in folders),
                values_too=not multirun,
            )
    return written


_OPTIONS_WITH_VALUE = frozenset(
    "--config-dir -cd --config-name -cn --cfg -c --package -p --info -i".split()
)


def _config_folder(arguments: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd")
    given = parser.parse_known_args(arguments)[0].config_dir
    return None if given is None else Path(given)


def same_data() -> list[str]:
    """Return the arguments by which another job finds the recipe of this one's data.

    A recipe goes by its file's name, which need not be its `name:`. Called within a job.
    """
    runtime = HydraConfig.get().runtime
    folders = [
        source.path for source in runtime.config_sources if source.provider == "command-line"
    ]
    return [
        *(f"--config-dir={folder}" for folder in folders),
        override("data", runtime.choices["data"]),
    ]


def next_command(job: str, workspace: str, *overrides: str, data: str = "") -> str:
    """Return the command of another job on the same data and workspace, as a shell takes it.

    Args:
        workspace: as it was given to this job.
        overrides: more arguments, written by recsys.overrides.override.
        data: the recipe's file name, where this job has no data=.
    """
    launch = Path(__file__).resolve().parents[1] / "launch" / f"{job}.py"
    if launch.is_relative_to(Path.cwd()):
        launch = launch.relative_to(Path.cwd())
    recipe = [override("data", data)] if data else same_data()
    place = override("workspace", workspace)
    return shlex.join(["python", str(launch), *recipe, place, *overrides])


def open_command(path: Path) -> str:
    """Return the command that shows a page, as a shell takes it."""
    return shlex.join(["open" if sys.platform == "darwin" else "xdg-open", str(path)])


def check_config_arguments(arguments: Sequence[str]) -> None:
    """Refuse configuration folders that a job cannot look through before Hydra acts on them.

    Raises:
        UserError: a folder's file reaches beyond its group, or the folder is named in another way
            than by --config-dir.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    known, others = parser.parse_known_args(arguments)
    if known.config_path or any(a.lstrip("+").startswith("hydra.searchpath") for a in others):
        raise UserError("recipes and presets of your own: name their folder with --config-dir")
    check_config_folder(_CONFIGS, is_ours=True)
    if known.config_dir:
        groups = [path.name for path in _CONFIGS.iterdir() if path.is_dir()]
        check_config_folder(Path(known.config_dir), groups=groups)


def _is_rank_lost(error: Exception) -> bool:
    """Return whether another rank's process is gone; a job that never loaded torch has no ranks."""
    if "torch.distributed" not in sys.modules:
        return False
    from recsys.runtime.collectives import is_rank_lost

    return is_rank_lost(error)


def run_job(job: Callable[[], None]) -> None:
    """Run a job's body; turn an error the user can act on into one message and exit code 1."""
    threading.excepthook = _thread_failed
    try:
        job()
    except Exception as error:
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):
            text = str(error)
        elif is_disk_full(error):  # in a library's words, where no writer of ours stands around it
            text = f"the disk is full; free some space and start again ({error})"
        elif _is_rank_lost(error):
            text = (
                f"another rank of this job is gone: it was killed (by a user, a scheduler, or for want "
                f"of memory), its machine is lost, or it failed and says so in its own output; start the "
                f"job again ({error})"
            )
        else:
            print(_FAULT, file=sys.stderr, flush=True)
            raise
        print(f"error: {text}", file=sys.stderr, flush=True)
        sys.exit(1)


_FAULT = (
    "this is a fault of Tessera, not of your data or settings; please report it with the command and the "
    "traceback below"
)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's error, but for a full disk: TensorBoard's writer hands it to the next caller."""
    if failure.exc_value is None or not is_disk_full(failure.exc_value):
        threading.__excepthook__(failure)
