"""Settings of an evaluation, and their check.

Called by launch/evaluate.py; launch/compare.py asks whether an evaluation was made with its settings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from recsys.errors import UserError
from recsys.evaluation.candidates import RankingConfig, check_ranking
from recsys.evaluation.segments import SegmentsConfig, check_segments


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """Bootstrap settings of the confidence intervals."""

    num_replicates: int = 200
    """Resampled sets of users."""
    level: float = 0.95
    """Share of them that an interval holds."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    REMOVED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "compare": ([], "compare evaluated runs with launch/compare.py runs=[a,b]")
    }
    """As recsys/config.py reads it."""

    split: str = "test"
    """`train`, `valid` or `test`."""
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
