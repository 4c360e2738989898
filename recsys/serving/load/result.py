"""Result of a load test: one row a measurement, as a table on the screen and as JSON.

Called by measure.py and launch/loadtest.py.
"""

import dataclasses
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.files import write_json
from recsys.runtime.limits import usable_cores, usable_memory_bytes
from recsys.schema import local_path
from recsys.serving.load.config import LoadTestConfig
from recsys.serving.load.loops import Sample
from recsys.serving.load.server import Server


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. Times in milliseconds; of a sample without a right answer, null."""

    route: str
    candidates: int
    loop: str
    offered: float
    """Connections of a closed loop; requests a second of an open one."""
    requests: int
    """Right answers."""
    errors: dict[str, int]
    """Failed requests by what was wrong."""
    requests_per_second: float
    requests_per_core_second: float | None
    """Right answers over the processor time of all the server's processes; None: not started by us."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


def row_of(
    sample: Sample,
    *,
    route: str,
    candidates: int,
    loop: str,
    offered: float,
    cpu_seconds: float | None,
) -> Row:
    """Return a measurement's row.

    Args:
        cpu_seconds: processor time of the server while the sample's requests were counted; None: not
            known.
    """
    times = sample.seconds_of() * 1000
    p50, p95, p99, longest = (
        np.percentile(times, [50, 95, 99, 100]).tolist() if len(times) else [None] * 4
    )
    return Row(
        route=route,
        candidates=candidates,
        loop=loop,
        offered=offered,
        requests=len(times),
        errors=dict(sample.errors),
        requests_per_second=len(times) / sample.seconds,
        requests_per_core_second=len(times) / cpu_seconds if cpu_seconds else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=longest,
    )


def machine() -> dict[str, Any]:
    """Return what a reader has to know of this machine: processor, cores, memory, system."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(usable_memory_bytes() / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


_COLUMNS = (
    "route candidates loop offered requests errors requests/s /s/core p50 p95 p99 max".split()
)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text; times in milliseconds."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in (0, 2, 3) else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _cells(row: Row) -> list[str]:
    offered = f"{row.offered:,.0f} conn." if row.loop == "closed" else f"{row.offered:,.0f}/s"
    per_core = row.requests_per_core_second
    times = (row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms)
    return [
        row.route,
        f"{row.candidates:,}",
        row.loop,
        offered,
        f"{row.requests:,}",
        f"{sum(row.errors.values()):,}",
        f"{row.requests_per_second:,.1f}",
        "-" if per_core is None else f"{per_core:,.1f}",
        *("-" if t is None else f"{t:.1f}" for t in times),
    ]


def result_path(config: LoadTestConfig, server: Server) -> Path | None:
    """Return where the result is written; None with `url` alone and no `out`."""
    if config.out is not None:
        return local_path(config.out, "out")
    if config.bundle is None:
        return None
    # W/bundles/current and W/bundles/<version> both are below W/bundles/.
    return local_path(config.bundle, "bundle").parents[1] / "loadtest" / f"{server.version}.json"


def write_result(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """Write the rows and facts (machine, bundle, settings) as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**facts, "rows": [dataclasses.asdict(row) for row in rows]})
