"""A suite: the variants of a comparison, their common overrides, and their search ranges."""

import math
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

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

    def problems(self) -> list[str]:
        """Return a text where there is nothing to choose from."""
        in_order = self.low < self.high and math.isfinite(self.high)
        if self.choices or (in_order and (self.low > 0 or not self.log)):
            return []
        return [
            f"low={self.low}, high={self.high}, log={self.log}; expected choices, or low < high, and "
            f"low > 0 with log"
        ]


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

    def problems(self) -> list[str]:
        """Return a text for a reference that is no variant, and for names that are no folder's."""
        variants, found = self.all_variants, []
        if self.reference not in variants:
            found.append(
                f"reference={self.reference!r}: expected one of suite.variants "
                f"({', '.join(variants) or 'empty'})"
            )
        found += name_problems("name", self.name)
        return found + [p for name in variants for p in name_problems("variants", name)]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over one model's settings."""

    name: str = "sweep"
    """Begins the names of the trials' runs and is the folder below workspace/sweeps/."""
    trials: Annotated[int, Field(ge=1)] = 20
    """Trainings in all; the first is the configuration as it is."""
    space: dict[str, SearchConfig] = field(default_factory=dict)
    """Settings to choose and where, by key of launch/train.py."""

    def problems(self) -> list[str]:
        """Return a text for a search over nothing, and for a name that is no folder's."""
        nothing = [] if self.space else ["space={}: expected at least one setting to choose"]
        return nothing + name_problems("name", self.name)
