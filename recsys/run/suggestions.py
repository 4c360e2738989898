"""Suggestions for tables that do not fit a cluster; each is planned before it is printed.

In: everything that decides a plan, and the reason why there is none. Out: changes that work, with the
keys to set and the verdict of the plan they lead to. Called by launch/plan.py.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from recsys.errors import UserError
from recsys.model.modality import TABLE_PREFIX
from recsys.run.assembly import build_plannable
from recsys.run.planning import Planned
from recsys.sharding.optimizers import TableOptimConfig
from recsys.sharding.shortage import DoesNotFitError

_MOST_HOSTS = 128


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


def _verdict(planned: Planned) -> str | None:
    """Return the verdict of the plan, None where there is no plan."""
    try:
        return planned.plan().summary.verdict
    except UserError:
        # A change whose parts contradict each other is no suggestion.
        return None


Change = tuple[str, str, Planned]
"""A change in words, its keys, and everything with the change."""


def _with(planned: Planned, section: str, **keys: Any) -> Planned:
    changed = dataclasses.replace(getattr(planned.config, section), **keys)
    return dataclasses.replace(
        planned, config=dataclasses.replace(planned.config, **{section: changed})
    )


def _row_wise(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    """Cut the table that does not fit by rows: alone, then with row-wise Adagrad and no penalty.

    Tables that the configuration leaves free need no suggestion: the search has tried it.
    """
    plan, optim, table = planned.config.plan, planned.config.optim, reason.table
    if table is None or table.startswith(TABLE_PREFIX):
        return
    asked = optim.tables.get(table, optim.table)
    is_pinned = table in plan.ranks
    unpin = f" ~plan.ranks.{table}" if is_pinned else ""
    cut = _with(
        planned,
        "plan",
        sharding=plan.sharding | {table: "row_wise"},
        ranks={t: ranks for t, ranks in plan.ranks.items() if t != table},
    )
    keys = f"plan.sharding.{table}=row_wise{unpin}"
    if table in plan.sharding or is_pinned:
        yield f"cut {table} by rows", keys, cut
    if asked.name not in ("auto", "rowwise_adagrad") or asked.l2:
        tables = optim.tables | {table: TableOptimConfig(name="rowwise_adagrad")}
        penalty = " and without its L2 penalty" if asked.l2 else ""
        yield (
            f"cut {table} by rows, trained with row-wise Adagrad (one value of state a row){penalty}",
            f"{keys} optim.tables.{table}.name=rowwise_adagrad",
            _with(cut, "optim", tables=tables),
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
        tables = sorted({*planned.config.model.half_tables, *large[:count]})
        if tables != sorted(planned.config.model.half_tables):
            yield (
                f"hold {', '.join(large[:count])} in half precision",
                f"model.half_tables=[{','.join(tables)}]",
                _with(planned, "model", half_tables=tables),
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
