"""A suite: the variants of a comparison, their common overrides, and their search ranges."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from recsys.errors import UserError
from recsys.model.build import BASELINES
from recsys.schema import name_problems


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search range of one setting."""

    choices: list[float] = field(default_factory=list)
    """Values to choose from; empty: the range below."""
    low: float = 0.0
    """Least value of the range."""
    high: float = 0.0
    """Greatest value of the range."""
    log: bool = False
    """Draw the logarithm evenly."""


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """One line of a comparison."""

    overrides: list[str] = field(default_factory=list)
    """Settings of launch/train.py that make this variant, after the suite's."""
    embed: list[str] = field(default_factory=list)
    """Settings of launch/embed.py: the variant gets feature tables of its own; empty: the
    workspace's."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Variants of a comparison; presets in configs/suite/."""

    name: str
    """Begins the names of the runs and is the folder below workspace/comparisons/."""
    reference: str
    """Variant that the others are compared with."""
    overrides: list[str] = field(default_factory=list)
    """Settings of launch/train.py for every variant."""
    space: dict[str, SearchConfig] = field(default_factory=dict)
    """Settings that each variant may choose for itself on validation (trials=), by key."""
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    """Variants by name, in the order of the table."""
    baselines: bool = False
    """Add a variant `model=<name>` for every baseline (recsys/model/baselines/) that is not there."""

    @property
    def all_variants(self) -> dict[str, VariantConfig]:
        """The variants and, if asked for, the baselines after them."""
        added = [name for name in BASELINES if self.baselines and name not in self.variants]
        return self.variants | {n: VariantConfig(overrides=[f"model={n}"]) for n in added}


def check_suite(suite: SuiteConfig) -> None:
    """Raise UserError where a suite cannot be run.

    Raises:
        UserError: the reference is no variant; a space is empty; a name is no folder name; lists
            every problem.
    """
    problems = []
    variants = suite.all_variants
    if suite.reference not in variants:
        problems.append(
            f"suite.reference={suite.reference!r}: expected one of suite.variants "
            f"({', '.join(variants) or 'empty'})"
        )
    problems += name_problems("suite.name", suite.name)
    for name in variants:
        problems += name_problems("suite.variants", name)
    problems += space_problems(suite.space, "suite.space")
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def space_problems(space: Mapping[str, SearchConfig], key: str) -> list[str]:
    """Return a text for each setting of `space` that cannot be searched."""
    problems = []
    for name, search in space.items():
        in_order = search.low < search.high and math.isfinite(search.high)
        if not search.choices and not (in_order and (search.low > 0 or not search.log)):
            problems.append(
                f"{key}.{name}: low={search.low}, high={search.high}, log={search.log}; expected "
                f"choices, or low < high, and low > 0 with log"
            )
    return problems


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over one model's settings."""

    name: str = "sweep"
    """Begins the names of the trials' runs and is the folder below workspace/sweeps/."""
    trials: int = 20
    """Trainings in all; the first is the configuration as it is."""
    space: dict[str, SearchConfig] = field(default_factory=dict)
    """Settings to choose and where, by key of launch/train.py."""
