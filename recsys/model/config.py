"""Settings that all rankers share; each ranker adds its own beside its module.

recsys/model/build.py lists the rankers by name.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

DENSE_PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Inputs, tables and precision of any ranker; presets in configs/model/."""

    REMOVED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "two_streams": (
            False,
            "it brought no gain (LOG.md, 2026-11-26); model=finalmlp is the ranker of two streams",
        ),
        "history_attention": (
            False,
            "it brought no gain (LOG.md, 2026-11-26); model.similarity_tiers=16 compares the item with "
            "the history's items",
        ),
        "table_dims": ({}, "tables.<table>.width does its job"),
        "half_tables": ([], "tables.<table>.precision=fp16 does its job"),
    }
    """Keys of earlier versions: off value, and what does their job now (recsys.config)."""
    KINDS: ClassVar[Mapping[str, type["RankerConfig"]]] = {}
    """Settings of every ranker by `name`; set by recsys/model/build.py (recsys.config)."""
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"dense_precision": DENSE_PRECISIONS}
    """Values that a key may have, by key (recsys.config_keys)."""
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("modality_components",)
    """Integers that may be 0; all others are 1 or more."""
    MAY_BE_EMPTY: ClassVar[tuple[str, ...]] = ()
    """Lists of widths that may have no entry."""
    name: str = "umair_fps"
    """`umair_fps`, or a baseline of recsys/model/baselines."""
    features: list[str] | None = None
    """Features to read, of ids and dense ones; null: all of the manifest."""
    exclude_features: list[str] = field(default_factory=list)
    """Features to leave out of `features`."""
    modalities: list[str] = field(default_factory=lambda: ["semantic", "style", "text"])
    """Item modalities to read; those without features in the workspace are left out."""
    interest_modalities: list[str] = field(default_factory=lambda: ["text"])
    """Modalities pooled over the history into interest vectors; the paper uses text alone."""
    interest_shrinkage: float = 0.0
    """An interest vector is the sum of the vectors of n items divided by n plus this number: of few items
    it is closer to zero. 0: their mean."""
    modality_components: int = 0
    """Principal components that the vectors of every modality are reduced to before anything is learned
    from them (recsys/model/components.py), fitted on the workspace's vectors; 0: none. Histograms of
    similarities read the vectors as they are."""
    embedding_dim: int = 16
    """Stored width of every table that has none of its own (tables.<table>.width), a multiple of 4; the
    last column is the first-order weight."""
    embedding_init: float = 0.01
    """Tables start uniform in plus or minus this."""
    first_order: bool = True
    """Add a first-order weight of every sparse feature to the logit."""
    dense_precision: str = "fp32"
    """Precision of the dense part's matrix products: `fp32`; `tf32` (NVIDIA GPU: fp32 with a short
    mantissa); `bf16` (autocast; GPU, or a CPU with avx512_bf16 or AMX). Weights and tables stay fp32."""

    def problems(self) -> list[str]:
        """Return a text for every size that no layer can have, and for every unknown choice."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found = [problem for key, value in values.items() for problem in self._unfit(key, value)]
        if not 0 <= self.embedding_init < math.inf:
            found.append(f"embedding_init={self.embedding_init}: expected 0 or more")
        if not 0 <= self.interest_shrinkage < math.inf:
            found.append(f"interest_shrinkage={self.interest_shrinkage}: expected 0 or more")
        return found + [
            f"{key}={values[key]!r}: expected one of {', '.join(choices)}"
            for key, choices in self.CHOICES.items()
            if values[key] not in choices
        ]

    def _unfit(self, key: str, value: Any) -> list[str]:
        """Return a text for a size, a list of widths or a dropout out of its bounds."""
        if key.endswith("dropout"):
            fits = value is None or 0 <= value < 1
            return [] if fits else [f"{key}={value}: expected 0 <= share < 1"]
        if key.endswith("_dims") and isinstance(value, list):
            fits = all(width >= 1 for width in value) and bool(value or key in self.MAY_BE_EMPTY)
            text = f"{key}={value}: expected widths of at least one layer, 1 or more"
            return [] if fits else [text]
        if isinstance(value, int) and not isinstance(value, bool):
            least = 0 if key in self.MAY_BE_ZERO else 1
            return [] if value >= least else [f"{key}={value}: expected {least} or more"]
        return []
