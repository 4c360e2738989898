"""Suggestions for tables that do not fit a cluster, or wait for the network; each is planned first.

In: everything that decides a plan, and the plan, or the reason why there is none. Out: changes that work,
with the keys to set and the verdict of the plan they lead to. Called by launch/plan.py.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from recsys.errors import UserError
from recsys.job import stage
from recsys.model.modality import TABLE_PREFIX
from recsys.run.assembly import build_plannable
from recsys.run.planning import Planned
from recsys.sharding.optimizers import TableOptimConfig
from recsys.sharding.plan import Plan
from recsys.sharding.shortage import DoesNotFitError
from recsys.sharding.tables import TableConfig

_MOST_HOSTS = 128
_WORTHWHILE = 0.9
"""Share of a step's time below which a quicker step is worth a suggestion."""
_SENT = {"forward_communication": "vectors", "backward_communication": "gradients of vectors"}


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change that makes the plan fit."""

    change: str
    """The change in words."""
    keys: str
    """The change as keys of the command line."""
    verdict: str
    """Verdict of the plan with the change."""


def suggest(planned: Planned, reason: DoesNotFitError) -> Iterator[Suggestion]:
    """Yield the changes that work, each planned: row-wise sharding, half precision, more hosts."""
    for kind in (_row_wise, _half_precision, _more_hosts):
        for change, keys, changed in kind(planned, reason):
            verdict = _verdict(changed)
            if verdict is not None:
                yield Suggestion(change=change, keys=keys, verdict=verdict)
                break


def half_precision_exchange(planned: Planned, plan: Plan) -> Suggestion | None:
    """Return the plan with vectors and gradients sent in half precision, where it is a tenth quicker.

    A direction that is in half precision already stays as it is. fp16 keeps more digits, bf16 the range
    that gradients need.
    """
    cluster = planned.cluster
    given = planned.config.plan.with_exchange(
        device_type=cluster.device, num_ranks=cluster.num_ranks
    )
    exchanges: dict[str, Any] = {
        key: half
        for key, half in (("forward_communication", "fp16"), ("backward_communication", "bf16"))
        if getattr(given, key) == "fp32"
    }
    if plan.num_ranks == 1 or not exchanges:
        return None
    halved = dataclasses.replace(given, **exchanges)
    config = dataclasses.replace(planned.config, plan=halved)
    before = plan.summary.critical_path_ms
    with stage("plan with an exchange in half precision") as planning:
        after = dataclasses.replace(planned, config=config).plan().summary.critical_path_ms
        planning.done(f"critical path of a step {after:.3f} ms instead of {before:.3f} ms")
    if after > _WORTHWHILE * before:
        return None
    return Suggestion(
        change=f"send {' and '.join(_SENT[key] for key in exchanges)} in half precision",
        keys=" ".join(f"plan.{key}={value}" for key, value in exchanges.items()),
        verdict=f"critical path of a step {after:.3f} ms instead of {before:.3f} ms",
    )


def _verdict(planned: Planned) -> str | None:
    """Return the verdict of the plan, None where there is no plan."""
    try:
        return planned.plan().summary.verdict
    except UserError:
        # A change whose parts contradict each other is no suggestion.
        return None


Change = tuple[str, str, Planned]
"""A change in words, its keys, and everything with the change."""


def _with(planned: Planned, names: Iterable[str], **keys: Any) -> Planned:
    """Return everything with other settings of some tables."""
    before = planned.config.tables
    changed = {name: dataclasses.replace(before.get(name, TableConfig()), **keys) for name in names}
    config = dataclasses.replace(planned.config, tables=before | changed)
    return dataclasses.replace(planned, config=config)


def _row_wise(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    """Cut the table that does not fit by rows: alone, then with row-wise Adagrad and no penalty.

    Tables that the configuration leaves free need no suggestion: the search has tried it.
    """
    table = reason.table
    if table is None or table.startswith(TABLE_PREFIX):
        return
    own = planned.config.tables.get(table, TableConfig())
    asked = planned.config.optim.table if own.optimizer is None else own.optimizer
    cut = _with(planned, [table], sharding=["row_wise"], ranks=None)
    keys = f"tables.{table}.sharding=row_wise"
    if own.ranks is not None:
        keys += f" tables.{table}.ranks=null"
    if own.sharding is not None or own.ranks is not None:
        yield f"cut {table} by rows", keys, cut
    if asked.name not in ("auto", "rowwise_adagrad") or asked.l2:
        penalty = " and without its L2 penalty" if asked.l2 else ""
        before = TableOptimConfig() if own.optimizer is None else own.optimizer
        rowwise = dataclasses.replace(before, name="rowwise_adagrad", l2=0.0)
        keys += f" tables.{table}.optimizer.name=rowwise_adagrad"
        if before.l2:
            keys += f" tables.{table}.optimizer.l2=0"
        yield (
            f"cut {table} by rows, trained with row-wise Adagrad (one value of state a row){penalty}",
            keys,
            _with(cut, [table], optimizer=rowwise),
        )


def _trainable_rows(planned: Planned) -> dict[str, int]:
    """Rows of the tables the model trains, largest first."""
    _, tables = build_plannable(
        config=planned.config,
        manifest=planned.manifest,
        modality_dims={},
        device_type=planned.cluster.device,
    )
    rows = {name: settings.rows for name, settings in tables.items()}
    return dict(sorted(rows.items(), key=lambda item: -item[1]))


def _half_precision(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    """Hold the largest tables in fp16: one of them, then two, and so on."""
    large = [t for t, rows in _trainable_rows(planned).items() if rows > 100_000]
    for count in range(1, len(large) + 1):
        tables = planned.config.tables
        full = [t for t in large[:count] if t not in tables or tables[t].precision != "fp16"]
        if full:
            yield (
                f"hold {', '.join(full)} in half precision",
                " ".join(f"tables.{table}.precision=fp16" for table in full),
                _with(planned, full, precision="fp16"),
            )


def _more_hosts(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    """The fewest hosts by doubling and halving: only the last candidate is yielded."""

    def on(hosts: int) -> Planned:
        return dataclasses.replace(
            planned, cluster=dataclasses.replace(planned.cluster, hosts=hosts)
        )

    hosts = _fewest(lambda hosts: _verdict(on(hosts)) is not None, planned.cluster.hosts)
    if hosts is not None:
        yield (
            f"use {hosts} hosts instead of {planned.cluster.hosts}",
            f"cluster.hosts={hosts}",
            on(hosts),
        )


def _fewest(fits: Callable[[int], bool], too_few: int) -> int | None:
    """Return the smallest number above `too_few` that fits, to a quarter; None up to _MOST_HOSTS."""
    enough = too_few * 2
    while not fits(enough):
        too_few, enough = enough, enough * 2
        if enough > _MOST_HOSTS:
            return None
    while enough - too_few > max(1, math.floor(0.25 * too_few)):
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if fits(middle) else (middle, enough)
    return enough
