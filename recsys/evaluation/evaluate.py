"""Evaluation of predictions: metrics, segments, ranking and importance, as stored in metrics.json.

In: Predictions of a split, of candidates, of shuffled inputs. Out: the content of metrics.json. Called by
report/evaluation_folder.py; tables and page are report/evaluation_tables.py and evaluation_page.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding.features.store import FeatureTable
from recsys.errors import UserError
from recsys.evaluation.candidates import Candidates, RankingConfig, check_ranking
from recsys.evaluation.predict import Predictions
from recsys.evaluation.rows import scored_rows
from recsys.evaluation.segments import ItemCounts, Segment, SegmentsConfig, check_segments
from recsys.files import DRAW_AGAIN, reading
from recsys.metrics.beyond_accuracy import (
    coverage,
    intra_list_diversity,
    novelty,
    popularity_lift,
)
from recsys.metrics.bootstrap import Difference, bootstrap_auc, bootstrap_units, interval
from recsys.metrics.ranking import mean_over_users, ranking_by_user
from recsys.metrics.summary import (
    compare_predictions,
    evaluate_predictions,
    intervals,
    too_small,
)
from recsys.metrics.weights import correlation, mean_by_user, summarise_weights
from recsys.schema import is_known

HEADLINE = {
    "auc": "AUC",
    "pr_auc": "PR-AUC",
    "log_loss": "log-loss (BCE)",
    "gauc": "GAUC",
    "normalised_entropy": "normalised entropy",
    "calibration": "calibration",
    "brier": "Brier score",
    "ece": "ECE",
}
"""Metrics with intervals, in the order they are shown."""

ITEM_KINDS = (
    "items_seen_in_training",
    "items_unseen_in_training",
    "items_only_drawn_as_negatives",
    "items_unknown_to_the_vocabulary",
)
"""Rows by what training holds of their item, in the order they are shown."""

_INTERVAL_ROWS = 500_000
"""Segments of more rows get no interval of their own: it would be narrower than a mark."""


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How uncertain a number is."""

    num_replicates: int = 200
    """Resampled sets of users."""
    level: float = 0.95
    """Share of them that an interval holds."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What an evaluation looks at."""

    split: str = "test"
    """`train`, `valid` or `test`."""
    compare: list[str] = field(default_factory=list)
    """Names of two evaluated runs whose predictions are compared, instead of scoring one."""
    seed: int = 0
    """Of resampled users, drawn candidates, shuffled inputs and sample users."""
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    """Intervals."""
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    """Where segments are cut."""
    ranking: RankingConfig = field(default_factory=RankingConfig)
    """Candidates and lists."""
    importance_rows: int = 10_000
    """Rows of the split that are scored again for each shuffled input; 0: none."""
    sample_users: int = 4
    """Users of the report whose recommendations are shown."""


def check_evaluation(config: EvaluateConfig, splits: Iterable[str]) -> None:
    """Raise UserError for settings that cannot be met, all at once."""
    problems = []
    if config.split not in splits:
        problems.append(f"split={config.split!r}: expected one of {', '.join(splits)}")
    if len(config.compare) not in (0, 2):
        problems.append(f"compare={config.compare}: expected the names of two runs, or none")
    if config.bootstrap.num_replicates < 2:
        problems.append(
            f"bootstrap.num_replicates={config.bootstrap.num_replicates}: expected 2 or more"
        )
    if not 0 < config.bootstrap.level < 1:
        problems.append(
            f"bootstrap.level={config.bootstrap.level}: expected a share between 0 and 1"
        )
    for name in ("importance_rows", "sample_users"):
        if getattr(config, name) < 0:
            problems.append(f"{name}={getattr(config, name)}: expected 0 or more")
    for check in (
        lambda: check_segments(config.segments),
        lambda: check_ranking(config.ranking),
    ):
        try:
            check()
        except UserError as error:
            problems.append(str(error).removeprefix("configuration: "))
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def evaluate_rows(
    predictions: Predictions,
    *,
    segments: Iterable[Segment],
    item_counts: ItemCounts | None,
    user_rows_N: NDArray[np.int64] | None,
    unknown_users_N: NDArray[np.uint64] | None,
    modality_names: list[str],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Return metrics over all rows with their intervals, and over every segment; mean weights too.

    Args:
        predictions: sorted by score (`by_score`), else it takes longer.
        item_counts: None where there are no items.
        user_rows_N: None where there are no users.
        unknown_users_N: a hash of the user's id where the user row is 0; None: not known, such rows
            are units of their own.
    """
    shared: dict[str, Any] = {
        "labels_N": predictions.label,
        "probabilities_N": predictions.score,
        "user_rows_N": user_rows_N,
    }
    rng = np.random.default_rng(config.seed)
    units_N = bootstrap_units(
        user_rows_N, len(predictions.label), rng, unknown_users_N=unknown_users_N
    )
    metrics: dict[str, Any] = {"all": evaluate_predictions(**shared)}
    metrics["intervals"] = {
        name: list(bounds)
        for name, bounds in intervals(
            **shared,
            units_N=units_N,
            num_replicates=config.bootstrap.num_replicates,
            level=config.bootstrap.level,
            rng=rng,
        ).items()
    }
    if user_rows_N is not None:
        is_unknown_N = ~is_known(user_rows_N)
        metrics["unknown_users"] = {
            "num_rows": int(np.count_nonzero(is_unknown_N)),
            "num_users": (
                None
                if unknown_users_N is None and is_unknown_N.any()
                else int(np.unique(units_N[is_unknown_N]).size)
            ),
        }
    if item_counts is not None:
        for name, mask_N in item_counts.kinds(predictions.item_row).items():
            metrics[f"items_{name}"] = evaluate_predictions(**shared, segment_N=mask_N)
    families: dict[str, dict[str, Any]] = {}
    has_weights = bool(predictions.weights.shape[1])
    for segment in segments:
        found = _evaluate_segment(predictions, user_rows_N, units_N, segment.mask_N, config)
        if has_weights and segment.mask_N.any():
            means = predictions.weights[segment.mask_N].mean(axis=0, dtype=np.float64)
            found["weights"] = dict(zip(modality_names, means.tolist(), strict=True))
        families.setdefault(segment.family, {})[segment.name] = found
    metrics["segments"] = families
    if has_weights:
        metrics["weights"] = summarise_weights(predictions.weights, modality_names)
    return metrics


def _evaluate_segment(
    predictions: Predictions,
    users: NDArray[np.int64] | None,
    units_N: NDArray[np.int64],
    mask_N: NDArray[np.bool_],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Return a segment's metrics, or its counts and why it has none."""
    labels, scores = predictions.label[mask_N], predictions.score[mask_N]
    own_users = None if users is None else users[mask_N]
    counts = {"num_rows": labels.size, "num_positives": int(labels.sum())}
    small = too_small(
        counts,
        min_rows=config.segments.min_rows,
        min_of_each_class=config.segments.min_of_each_class,
    )
    if small:
        return {**counts, "note": small}
    found: dict[str, Any] = dict(
        evaluate_predictions(labels_N=labels, probabilities_N=scores, user_rows_N=own_users)
    )
    if own_users is not None and labels.size <= _INTERVAL_ROWS:
        replicates = bootstrap_auc(
            labels,
            scores,
            units_N[mask_N],
            num_replicates=config.bootstrap.num_replicates,
            rng=np.random.default_rng(config.seed),
        )
        found["auc_interval"] = list(interval(replicates, level=config.bootstrap.level))
    return found


def evaluate_candidates(
    candidates: Candidates,
    scored: Predictions,
    *,
    train_count: NDArray,
    profile_count_U: Mapping[int, float],
    tables: Mapping[str, FeatureTable],
    config: EvaluateConfig,
) -> tuple[dict[str, Any], dict[int, NDArray[np.int64]]]:
    """Return ranking and list metrics, and every user's best candidates (numbers of pairs).

    Args:
        scored: predictions of the candidates, in any order.
        profile_count_U: mean training rows of the items of a user's history, by user row.
        tables: item vectors by modality; only those of recommended items are read.
    """
    score_N = np.empty(len(candidates.user_row_N))
    score_N[scored.row_id] = scored.score
    ks = config.ranking.ks
    users_N, relevant_N = candidates.user_row_N, candidates.relevant_N
    rng = np.random.default_rng(config.seed)
    drawn_N = _drawn_candidates(candidates, config.ranking.num_negatives, rng)
    metrics: dict[str, Any] = {
        "num_users": int(np.unique(users_N).size),
        "sampled": _ranking(relevant_N[drawn_N], score_N[drawn_N], users_N[drawn_N], config),
    }
    metrics["sampled"]["candidates"] = f"positives and {config.ranking.num_negatives} drawn items"
    best = {}
    # Stable, after a seeded shuffle: ties are broken by chance, not by the order of the items.
    shuffled = rng.permutation(users_N.size)
    order = shuffled[np.lexsort((-score_N[shuffled], users_N[shuffled]))]
    for user_order in np.split(order, np.flatnonzero(np.diff(users_N[order])) + 1):
        best[int(users_N[user_order[0]])] = user_order[: max(ks)]
    if not candidates.is_full:
        return {"ranking": metrics}, best
    metrics["full"] = _ranking(relevant_N, score_N, users_N, config)
    metrics["full"]["candidates"] = "all items the user had not seen"
    k = min(ks)
    lists_UK = np.full((len(best), k), -1)
    for line, pairs in zip(lists_UK, best.values(), strict=True):
        line[: len(pairs[:k])] = candidates.item_row_N[pairs[:k]]
    lists: dict[str, Any] = {
        "k": k,
        "coverage": coverage(lists_UK, num_item_rows=len(train_count)),
        "novelty": novelty(lists_UK, count_I=train_count),
        "popularity_lift": popularity_lift(
            lists_UK,
            count_I=train_count,
            profile_mean_U=[profile_count_U.get(user, np.nan) for user in best],
        ),
    }
    items = np.unique(lists_UK[lists_UK > 0])
    # Numbered anew, row 0 first, so that the vectors of these items alone are read.
    places_UK = np.where(lists_UK > 0, np.searchsorted(items, lists_UK) + 1, -1)
    for name, table in tables.items():
        parts = [table.read(row, row + 1) for row in (0, *items.tolist())]
        vectors_IE = np.concatenate(parts)
        lists[f"diversity_{name}"] = intra_list_diversity(places_UK, vectors_IE=vectors_IE)
    return {"ranking": metrics, "recommendations": lists}, best


def _drawn_candidates(
    candidates: Candidates, num_negatives: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the numbers of all relevant pairs and of so many others of each user."""
    if not candidates.is_full:
        return np.arange(candidates.user_row_N.size)
    luck_N = np.where(candidates.relevant_N, -1.0, rng.random(candidates.user_row_N.size))
    order = np.lexsort((luck_N, candidates.user_row_N))
    users = candidates.user_row_N[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(users)) + 1])
    lengths = np.diff(starts, append=users.size)
    place = np.arange(users.size) - np.repeat(starts, lengths)
    num_relevant = np.add.reduceat(candidates.relevant_N[order], starts, dtype=np.int64)
    return order[place < np.repeat(num_relevant, lengths) + num_negatives]


def _ranking(
    relevant_N: NDArray, score_N: NDArray, users_N: NDArray, config: EvaluateConfig
) -> dict[str, Any]:
    """Return the means over users, and their intervals over resampled users."""
    _, values = ranking_by_user(relevant_N, score_N, users_N, ks=config.ranking.ks)
    rng = np.random.default_rng(config.seed)
    num_users = len(values["mrr"])
    drawn_RU = rng.integers(num_users, size=(config.bootstrap.num_replicates, num_users))
    return {
        **{name: mean_over_users(of_users) for name, of_users in values.items()},
        "intervals": {
            name: list(interval(of_users[drawn_RU].mean(axis=1), level=config.bootstrap.level))
            for name, of_users in values.items()
        },
    }


def planted_shares(
    predictions: Predictions, names: list[str], truth: Path, user_ids: NDArray
) -> dict[str, tuple[NDArray, NDArray, float]]:
    """Return, by modality, each user's planted share, learned share, and how the two correlate (r).

    Sensitivities add up to one constant for every user, so they and the users' mean weights are
    compared as shares of the modalities that have a sensitivity. Empty where there is no truth, or
    the model has no such weights.

    Args:
        truth: users.parquet of the drawn world.
        user_ids: by user row.

    Raises:
        UserError: the truth does not know a user.
    """
    if not truth.is_file():
        return {}
    with reading(truth, DRAW_AGAIN):
        table = pq.read_table(truth)
    planted = [name for name in names if f"sensitivity_{name}" in table.column_names]
    if len(planted) < 2:
        return {}
    users, means_UM = mean_by_user(predictions.weights, predictions.user_row)
    at = {user_id: index for index, user_id in enumerate(table.column("user_id").to_pylist())}
    rows = np.array([at.get(user_ids[user], -1) for user in users], dtype=np.int64)
    if (rows < 0).any():
        raise UserError(
            f"{truth}: no sensitivities of {np.count_nonzero(rows < 0)} of {users.size} users; the "
            f"prepared data was made from another drawing, run launch/prepare.py again"
        )
    drawn = [table.column(f"sensitivity_{name}").to_numpy()[rows] for name in planted]
    learned = [means_UM[:, names.index(name)] for name in planted]
    of_drawn, of_learned = np.sum(drawn, axis=0), np.maximum(np.sum(learned, axis=0), 1e-12)
    shares = {}
    for name, drawn_U, learned_U in zip(planted, drawn, learned, strict=True):
        drawn_U, learned_U = drawn_U / of_drawn, learned_U / of_learned
        shares[name] = (drawn_U, learned_U, correlation(drawn_U, learned_U))
    return shares


def evaluate_importance(
    whole: Predictions,
    shuffled: Mapping[tuple[str, str], Predictions],
    *,
    user_rows_N: NDArray[np.int64] | None,
    unknown_users_N: NDArray[np.uint64] | None,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    """Return what AUC and log-loss lose with each input shuffled, the largest loss first.

    Args: user_rows_N, unknown_users_N: as of `evaluate_rows`, in the order of `whole`.
    """
    order_N = np.argsort(whole.row_id, kind="stable")
    base = whole.take(order_N)
    rng = np.random.default_rng(config.seed)
    users_N = None if user_rows_N is None else user_rows_N[order_N]
    unknown_N = None if unknown_users_N is None else unknown_users_N[order_N]
    units_N = bootstrap_units(users_N, order_N.size, rng, unknown_users_N=unknown_N)
    lines = []
    for (kind, name), predictions in shuffled.items():
        other = by_row_id(predictions)
        found = compare_predictions(
            labels_N=base.label,
            first_N=other.score,
            second_N=base.score,
            user_rows_N=users_N,
            units_N=units_N,
            num_replicates=config.bootstrap.num_replicates,
            level=config.bootstrap.level,
            rng=np.random.default_rng(config.seed),
            names=("auc", "log_loss"),
        )
        auc, loss = found["auc"], found["log_loss"]
        lines.append({
            "kind": kind,
            "name": name,
            "auc_lost": auc.difference,
            "interval": [auc.low, auc.high],
            "log_loss_added": -loss.difference,
        })
    return sorted(lines, key=lambda line: -line["auc_lost"])


def by_row_id(predictions: Predictions) -> Predictions:
    """Return the rows in input order."""
    return predictions.take(np.argsort(predictions.row_id, kind="stable"))


def compare_files(paths: tuple[Path, Path], config: EvaluateConfig) -> dict[str, Difference]:
    """Return how the predictions.parquet of two runs differ, over the same drawn users.

    Raises:
        UserError: a run has no predictions of this split; the two are of different rows.
    """
    tables = []
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: no predictions; run launch/evaluate.py with "
                f"run.name={path.parents[2].name} split={config.split} first"
            )
        with reading(path, f"run launch/evaluate.py again with run.name={path.parents[2].name}"):
            tables.append(pq.read_table(path))
    first, second = tables
    for name in ("row_id", "label", "user_id", "item_id"):
        columns = [table.column(name) for table in tables if name in table.column_names]
        if len(columns) == 1 or (len(columns) == 2 and not columns[0].equals(columns[1])):
            raise UserError(
                f"{paths[0]} ({first.num_rows:,} rows) and {paths[1]} ({second.num_rows:,} rows) "
                f"differ in {name}: these are predictions of different data; evaluate both runs on "
                f"the data as it is now"
            )
    # Either file may be older than the column that tells unknown users apart.
    told = second if "unknown_user" in second.column_names else first
    rows, others, units = (scored_rows(table) for table in (first, second, told))
    return compare_predictions(
        labels_N=rows.label_N,
        first_N=rows.score_N,
        second_N=others.score_N,
        user_rows_N=rows.user_row_N,
        units_N=units.unit_N,
        num_replicates=config.bootstrap.num_replicates,
        level=config.bootstrap.level,
        rng=np.random.default_rng(config.seed),
    )
