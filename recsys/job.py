"""How a job speaks and how it fails: one line per stage on rank 0, one sentence per error.

Called by every file in `launch/`. Errors a user can act on (ValueError, OSError, and the
FloatingPointError of diverged training) end the process with code 1 and their sentence on stderr;
anything else is our own mistake and keeps its traceback.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recsys.config import check_config_folder, optional_plus
from recsys.distributed.env import rank_from_environment

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
    name: str, *, sections: Sequence[str] = ()
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a launch file's `main` from a function of the composed configuration.

    Every configuration file within reach is looked at first (recsys.config.check_config_folder).

    Args:
        name: of the root file in configs/.
        sections: that the job checks against dataclasses: any of their keys can be given.
    """

    def decorate(job: Callable[[DictConfig], None]) -> Callable[[], None]:
        composed = hydra.main(version_base=None, config_path="../configs", config_name=name)(job)

        @functools.wraps(job)
        def main() -> None:
            run_job(lambda: check_config_arguments(sys.argv[1:]))
            sys.argv[1:] = optional_plus(sys.argv[1:], sections)
            composed()

        return main

    return decorate


def check_config_arguments(arguments: Sequence[str]) -> None:
    """Refuse configuration folders that a job cannot look through before Hydra acts on them.

    Raises:
        ValueError: a folder's file reaches beyond its group, or the folder is named in another way
            than by --config-dir.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    known, others = parser.parse_known_args(arguments)
    if known.config_path or any(a.lstrip("+").startswith("hydra.searchpath") for a in others):
        raise ValueError("recipes and presets of your own: name their folder with --config-dir")
    check_config_folder(_CONFIGS, is_ours=True)
    if known.config_dir:
        check_config_folder(Path(known.config_dir))


def run_job(job: Callable[[], None]) -> None:
    """Run a job's body; turn an error the user can act on into one message and exit code 1."""
    try:
        job()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
