"""Follower of deltas: makes the bundle that a new delta gives, and makes it the current one.

In: the folders `deltas` and `current` beside the bundles. Out: the next bundle beside the served one; the
pool takes it over as any newer bundle. A delta that cannot be applied is refused by name, and tried again
when something there has changed. Called by pool.py and process.py.
"""

import asyncio
import os
from pathlib import Path

from recsys.bundle.chain import catch_up, compact
from recsys.bundle.delta import DELTAS
from recsys.bundle.spec import CURRENT
from recsys.errors import UserError
from recsys.serving.server.config import ServeConfig
from recsys.serving.server.log import log
from recsys.serving.server.metrics import Metrics

LOOK_SECONDS = 0.5


class DeltaFollower:
    """Applies the deltas of one folder of bundles, one after the other."""

    def __init__(self, config: ServeConfig, metrics: Metrics):
        """A server of one bundle's folder, and not of `current`, follows no deltas."""
        bundle = Path(os.path.realpath(config.bundle))
        self._bundles = bundle.parent if bundle.name == CURRENT and bundle.is_file() else None
        self._keep = config.keep
        self._metrics = metrics
        self._seen: list[tuple[str, int]] = []
        self.refused: dict[str, str] = {}
        """Folder of deltas with the reason why its next one cannot be applied; empty: all are."""

    async def run(self) -> None:
        """Look for ever."""
        while self._bundles is not None:
            found = self._look(self._bundles)
            if found != self._seen:
                await self._apply(self._bundles)
                # What came meanwhile is looked at again, since `found` is older.
                self._seen = found
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, bundles: Path) -> list[tuple[str, int]]:
        """Return what decides whether there is a delta to apply: `current`, and files of deltas."""
        paths = [bundles / CURRENT, *(bundles / DELTAS).glob("*/*")]
        return sorted((str(path), _stamp(path)) for path in paths)

    async def _apply(self, bundles: Path) -> None:
        try:
            made = await asyncio.to_thread(catch_up, bundles)
        except (UserError, OSError) as error:  # OSError: a folder that may only be read, or is gone
            self.refused = {str(bundles / DELTAS): str(error)}
            self._metrics.refused.inc()
            log("delta refused", folder=str(bundles / DELTAS), reason=str(error))
            return
        self.refused = {}
        if made:
            log("deltas applied", versions=made)
            await self._remove_old(bundles)

    async def _remove_old(self, bundles: Path) -> None:
        try:
            removed = await asyncio.to_thread(compact, bundles, self._keep)
        except (UserError, OSError) as error:  # they stay until the next delta
            removed = []
            log("old versions not removed", reason=str(error))
        if removed:
            log("old versions removed", names=removed, keep=self._keep)


def _stamp(path: Path) -> int:
    """Return a file's time of modification in ns; 0 where it has gone meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
