"""Recipe of one feature: which column it is made of, and how a value becomes ids or a number.

Part of a recipe (recsys/data/recipe.py), through which other files import it.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class FeatureRecipe:
    """One feature made from one column: ids of a table, or a number."""

    column: str | None = None
    """Column of the file; null: the feature's own name."""
    kind: Literal["id", "id_list", "numeric", "dense"] = "id"
    """`id`, `id_list` (several ids in one text), `numeric` (bucketed), or `dense` (a number that the
    model reads as it is scaled)."""
    separator: str = "|"
    """Between the ids of an id_list; a Parquet column of lists needs none."""
    weight_separator: str | None = None
    """Between an id of an id_list and its weight, as ":" in `red:0.7|sky:0.2`; null: no weights."""
    extract: str | None = None
    """Regular expression whose first group is the value; null: the whole text."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """Ids seen less often than this share the unknown row 0."""
    hash_rows: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Rows of a hashed table (row 0 included, no vocabulary); 0: build a vocabulary."""
    quantiles: Annotated[int, Field(ge=2)] = 16
    """Buckets of about equal count for a numeric column without cuts."""
    cuts: list[float] = field(default_factory=list)
    """Upper bounds of numeric buckets, ascending; empty: quantiles."""
    scale: Literal["standard", "log", "none"] = "standard"
    """Of a dense number: `standard` (less the mean of the training values, over their deviation), `log`
    (the same of sign(x) ln(1 + |x|)), or `none` (as it is)."""
    side: Literal["user", "item", "context"] | None = None
    """Tower of an interaction feature: `user`, `item` or `context`; null: context."""

    def problems(self) -> list[str]:
        """Return a text for every value that no column can be read by."""
        problems = []
        if self.cuts != sorted(self.cuts):
            problems.append(f"cuts={self.cuts}: expected ascending numbers")
        if not all(math.isfinite(cut) for cut in self.cuts):
            problems.append(f"cuts={self.cuts}: expected finite numbers")
        if self.hash_rows == 1:
            problems.append("hash_rows=1: expected 0, or 2 and more")
        if self.separator == "":
            problems.append("separator='': expected text between list elements")
        if self.weight_separator is not None:
            problems += self._weight_problems(self.weight_separator)
        return problems

    def _weight_problems(self, given: str) -> list[str]:
        """Return a text for everything that a separator of weights does not go with."""
        reasons = {
            "expected text between an id and its weight": given.strip() == "",
            "only lists have weights, kind: id_list": self.kind != "id_list",
            "expected another than separator": given in self.separator or self.separator in given,
            "does not go with extract": self.extract is not None,
        }
        return [
            f"weight_separator={given!r}: {reason}" for reason, is_so in reasons.items() if is_so
        ]
