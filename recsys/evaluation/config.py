"""Settings of an evaluation.

Called by launch/evaluate.py; launch/compare.py asks whether an evaluation was made with its settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from recsys.evaluation.candidates import RankingConfig
from recsys.evaluation.segments import SegmentsConfig


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """Bootstrap settings of the confidence intervals."""

    num_replicates: Annotated[int, Field(ge=2)] = 200
    """Resampled sets of users."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of them that an interval holds."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    REMOVED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "compare": ([], "compare evaluated runs with launch/compare.py runs=[a,b]")
    }
    """As recsys/config.py reads it."""

    split: str = "test"
    """`train`, `valid`, `test`, an appended window such as window_0001, or `next`: the newest window."""
    seed: int = 0
    """Of resampled users, drawn candidates, shuffled inputs and sample users."""
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    """Intervals."""
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    """Where segments are cut."""
    ranking: RankingConfig = field(default_factory=RankingConfig)
    """Candidates and lists."""
    importance_rows: Annotated[int, Field(ge=0)] = 10_000
    """Rows of the split that are scored again for each shuffled input; 0: none."""
    sample_users: Annotated[int, Field(ge=0)] = 4
    """Users of the report whose recommendations are shown."""
