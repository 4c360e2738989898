"""The result of an evaluation: the record that metrics.json holds, written and read here alone.

In: what split.py, ranking.py, importance.py and planted.py compute. Out: metrics.json and the record
again. Called by launch/evaluate.py (writes), the reports (show) and launch/compare.py (reads). Files of
earlier versions lack parts: these are None, empty or nan.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.files import read_json, reading, write_json
from recsys.metrics.oracle import OracleMetrics
from recsys.metrics.registry import METRICS
from recsys.metrics.summary import RowMetrics
from recsys.metrics.weights import WeightSummary

Interval = tuple[float, float]
"""Lower and upper end; nan where there is none."""

ITEM_KINDS = (
    "seen_in_training",
    "unseen_in_training",
    "only_drawn_as_negatives",
    "unknown_to_the_vocabulary",
)
"""Rows by what training holds of their item, in the order they are shown."""


@dataclass(frozen=True, kw_only=True)
class UnknownUsers:
    """Rows of users that the vocabulary does not know."""

    num_rows: int
    num_users: int | None
    """None: the prepared data does not tell these users apart."""


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """Metrics of one segment, or why it has none."""

    num_rows: int
    num_positives: int
    metrics: RowMetrics | None
    """None: the segment is too small."""
    note: str = ""
    """Why there are no metrics."""
    auc_interval: Interval | None = None
    """None: without users, or narrower than a mark of the figure."""
    weights: dict[str, float] = field(default_factory=dict)
    """Mean weight by modality; empty without weights or rows."""


@dataclass(frozen=True, kw_only=True)
class RankingResult:
    """Ranking metrics on one kind of candidates: means over users."""

    values: dict[str, float]
    """By name, such as `recall@10`."""
    intervals: dict[str, Interval]
    """The same names, over resampled users."""
    candidates: str
    """Description of the candidates."""


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """Ranking metrics of the users that were ranked."""

    num_users: int
    sampled: RankingResult
    """Candidates: the positives and drawn items."""
    full: RankingResult | None = None
    """Candidates: all items the user had not seen; None where these were too many."""

    def by_kind(self) -> dict[str, RankingResult]:
        """Return the results that there are, `full` first."""
        full = {} if self.full is None else {"full": self.full}
        return {**full, "sampled": self.sampled}


@dataclass(frozen=True, kw_only=True)
class TwoStageResult:
    """Metrics of serving's two stages: candidates by a bundle, ranked by the run."""

    bundle: str
    """Name of the bundle, of the same checkpoint."""
    num_candidates: int
    """Candidates of every user."""
    k: int
    """Best items of the full ranking that are looked for among the candidates."""
    values: dict[str, float]
    """`candidate_recall`, the share of the best k that are candidates, and the ranking metrics of the
    pipeline by name."""
    intervals: dict[str, Interval]
    """The same names, over resampled users."""


@dataclass(frozen=True, kw_only=True)
class ListResult:
    """Metrics of recommended lists beside accuracy."""

    k: int
    """Length of the lists."""
    values: dict[str, float]
    """`coverage`, `novelty`, `popularity_lift`, and `diversity_<modality>`."""


@dataclass(frozen=True, kw_only=True)
class InputImportance:
    """Permutation importance of one input."""

    kind: str
    """`feature`, `item vector` or `history vector`."""
    name: str
    auc_lost: float
    """AUC with the input minus AUC with it shuffled."""
    interval: Interval
    """Of `auc_lost`, over resampled users."""
    log_loss_added: float = float("nan")
    """Log-loss with the input shuffled minus log-loss with it."""


@dataclass(kw_only=True)
class EvaluationResult:
    """Everything that metrics.json holds; parts that were not computed are None or empty."""

    all: RowMetrics
    """Over all rows of the split."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Of the metrics in `all`, over resampled users."""
    unknown_users: UnknownUsers | None = None
    """None without users."""
    by_item_kind: dict[str, RowMetrics] = field(default_factory=dict)
    """By ITEM_KINDS; empty without items."""
    segments: dict[str, dict[str, SegmentResult]] = field(default_factory=dict)
    """By family and name."""
    weights: dict[str, WeightSummary] = field(default_factory=dict)
    """By modality."""
    oracle: OracleMetrics | None = None
    """Where the true probabilities are known."""
    planted: dict[str, float] = field(default_factory=dict)
    """Correlation of learned weights and planted sensitivities, by modality."""
    rankings: Rankings | None = None
    lists: ListResult | None = None
    two_stages: TwoStageResult | None = None
    """None: no bundle of the checkpoint, or not all items were candidates."""
    importance: list[InputImportance] | None = None
    """Largest loss first; None: not asked for."""
    made_from: dict[str, Any] | None = None
    """Checkpoint, data, features and settings (recsys/run/fingerprint.py); None in files of earlier
    versions."""


def write_result(path: Path, result: EvaluationResult) -> None:
    """Write metrics.json; nan becomes null."""
    write_json(path, to_json(result))


def read_result(path: Path, remedy: str) -> EvaluationResult:
    """Return the record of a metrics.json.

    Args:
        remedy: what makes the file anew, for the message.

    Raises:
        DamagedFileError: no file, no JSON, or JSON of another content.
    """
    with reading(path, remedy):
        return from_json(read_json(path, remedy))


def to_json(result: EvaluationResult) -> dict[str, Any]:
    """Return the content of metrics.json; parts that were not computed have no key."""
    content: dict[str, Any] = {"all": result.all.flat(), "intervals": result.intervals}
    if result.unknown_users is not None:
        content["unknown_users"] = dataclasses.asdict(result.unknown_users)
    for kind, metrics in result.by_item_kind.items():
        content[f"items_{kind}"] = metrics.flat()
    content["segments"] = {
        family: {name: _segment_to_json(segment) for name, segment in members.items()}
        for family, members in result.segments.items()
    }
    if result.weights:
        content["weights"] = {n: dataclasses.asdict(w) for n, w in result.weights.items()}
    if result.oracle is not None:
        content["oracle"] = dataclasses.asdict(result.oracle)
    if result.planted:
        content["planted"] = result.planted
    if result.rankings is not None:
        content["ranking"] = {"num_users": result.rankings.num_users} | {
            kind: {**found.values, "intervals": found.intervals, "candidates": found.candidates}
            for kind, found in reversed(result.rankings.by_kind().items())
        }
    if result.lists is not None:
        content["recommendations"] = {"k": result.lists.k, **result.lists.values}
    if result.two_stages is not None:
        content["two_stages"] = dataclasses.asdict(result.two_stages)
    if result.importance is not None:
        content["importance"] = [dataclasses.asdict(line) for line in result.importance]
    if result.made_from is not None:
        content["made_from"] = result.made_from
    return content


def from_json(content: Mapping[str, Any]) -> EvaluationResult:
    """Return the record of what `to_json` or an earlier version wrote; null becomes nan."""
    unknown, oracle = content.get("unknown_users"), content.get("oracle")
    rankings, lists = content.get("ranking"), content.get("recommendations")
    importance, two_stages = content.get("importance"), content.get("two_stages")
    return EvaluationResult(
        all=RowMetrics.from_flat(content.get("all", {})),
        intervals={
            name: _interval(bounds)
            for name, bounds in content.get("intervals", {}).items()
            if name in METRICS
        },
        unknown_users=None if unknown is None else UnknownUsers(**unknown),
        by_item_kind={
            kind: RowMetrics.from_flat(content[f"items_{kind}"])
            for kind in ITEM_KINDS
            if f"items_{kind}" in content
        },
        segments={
            family: {name: _segment_from_json(found) for name, found in members.items()}
            for family, members in content.get("segments", {}).items()
        },
        weights={
            name: WeightSummary(**_numbers(found))
            for name, found in content.get("weights", {}).items()
        },
        oracle=None if oracle is None else OracleMetrics(**_numbers(oracle)),
        planted=_numbers(content.get("planted", {})),
        rankings=None if rankings is None else _rankings_from_json(rankings),
        lists=(
            None
            if lists is None
            else ListResult(k=lists["k"], values=_numbers(lists, without=("k",)))
        ),
        two_stages=None if two_stages is None else _two_stages_from_json(two_stages),
        importance=(
            None if importance is None else [_importance_from_json(line) for line in importance]
        ),
        made_from=content.get("made_from"),
    )


def _segment_to_json(segment: SegmentResult) -> dict[str, Any]:
    content: dict[str, Any]
    if segment.metrics is None:
        counts = {"num_rows": segment.num_rows, "num_positives": segment.num_positives}
        content = {**counts, "note": segment.note}
    else:
        content = dict(segment.metrics.flat())
    if segment.auc_interval is not None:
        content["auc_interval"] = segment.auc_interval
    if segment.weights:
        content["weights"] = segment.weights
    return content


def _segment_from_json(found: Mapping[str, Any]) -> SegmentResult:
    bounds = found.get("auc_interval")
    return SegmentResult(
        num_rows=found["num_rows"],
        num_positives=found["num_positives"],
        metrics=None if "note" in found else RowMetrics.from_flat(found),
        note=found.get("note", ""),
        auc_interval=None if bounds is None else _interval(bounds),
        weights=_numbers(found.get("weights", {})),
    )


def _rankings_from_json(found: Mapping[str, Any]) -> Rankings:
    kinds = {
        kind: RankingResult(
            values=_numbers(found[kind], without=("intervals", "candidates")),
            intervals={n: _interval(b) for n, b in found[kind]["intervals"].items()},
            candidates=found[kind]["candidates"],
        )
        for kind in ("sampled", "full")
        if kind in found
    }
    return Rankings(num_users=found["num_users"], sampled=kinds["sampled"], full=kinds.get("full"))


def _two_stages_from_json(found: Mapping[str, Any]) -> TwoStageResult:
    return TwoStageResult(**{
        **found,
        "values": _numbers(found["values"]),
        "intervals": {name: _interval(bounds) for name, bounds in found["intervals"].items()},
    })


def _importance_from_json(line: Mapping[str, Any]) -> InputImportance:
    numbers = _numbers(line, without=("kind", "name", "interval"))
    bounds = _interval(line["interval"])
    return InputImportance(kind=line["kind"], name=line["name"], interval=bounds, **numbers)


def _interval(bounds: Any) -> Interval:
    low, high = (float("nan") if end is None else float(end) for end in bounds)
    return low, high


def _numbers(found: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, float]:
    return {
        name: float("nan") if value is None else float(value)
        for name, value in found.items()
        if name not in without
    }
