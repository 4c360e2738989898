"""Features and tables of a manifest: the records that say how a raw value becomes a row or a number.

Part of the manifest (recsys/schema.py), through which readers import them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One embedding table: a numbering of ids, and the rules that turn a raw value into a row.

    A null, a blank, an id that the vocabulary lacks and a text that is no number have the unknown row
    0; in a list they are left out. recsys/data/encode.py applies the rules.
    """

    name: str
    num_rows: int
    """Rows including the unknown row 0; a hashed id takes one of the others."""
    kind: str
    """Rule of recsys/data/encode.py that gives an id its row, such as `vocab` (listed in a file)."""
    vocabulary: str | None = None
    """Parquet file below `prepared/` with the columns row, id, count; null: not a vocabulary."""
    cuts: tuple[float, ...] = ()
    """Upper bounds of the buckets, ascending: a number's row is 1 + the count of cuts below it."""
    trim: bool = True
    """Whether blanks around a text are left out; ids of users and items are taken as written."""
    extract: str | None = None
    """Regular expression (RE2) whose first group is the value; null: the whole text."""
    separator: str | None = None
    """Between the ids of a list in one text; null: a row has one id."""
    weight_separator: str | None = None
    """Between an id of a list and its weight; null: all ids of a list count alike."""

    @property
    def is_list(self) -> bool:
        """True where a raw value may hold several ids."""
        return self.separator is not None


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One sparse feature: ids of a row that are looked up in a table."""

    name: str
    table: str
    source: str
    """Where the rows are stored: `interaction`, `user`, `item`, or `history`."""
    side: str
    """Which tower reads it: `user`, `item` or `context` (context joins the user tower)."""
    is_list: bool
    """False: exactly one row per example. True: zero or more, mean-pooled."""
    is_weighted: bool = False
    """Whether the mean of a list is weighted: each id has a weight of its own."""
    column: str | None = None
    """Column of the raw file; null: made from other columns (a history), or not recorded."""
    column_type: str | None = None
    """Type of that column, of its elements where it holds lists: `text`, `integer`, `float32`,
    `float64`, `decimal(<digits after the point>)`, `boolean`, `date`, `timestamp` or `timestamp with
    zone`. By it a request's number gets the text that prepare read; null: not recorded, or mixed."""
    max_ids: int | None = None
    """Most ids that a prepared row has: a longer list of a request is cut to them; null: not
    recorded."""


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """One dense feature: a number of a row that a ranker reads as a float, and the rule that scales it.

    recsys/data/dense.py applies the rule. A null, a blank and NaN are missing.
    """

    name: str
    source: str
    """File of the column: `interaction`, `user` or `item`."""
    side: str
    """Which tower reads it: `user`, `item` or `context` (context joins the user tower)."""
    column: str
    """Column of the raw file."""
    scale: str
    """`standard`, `log` or `none`."""
    mean: float = 0.0
    """Mean of the training values, of scale `log` after the logarithm."""
    deviation: float = 1.0
    """Standard deviation of the same values; 1 where they are all equal."""
    has_missing: bool = True
    """Whether training rows lack the number: a missing one is flagged then, otherwise it is the mean."""
    extract: str | None = None
    """Regular expression (RE2) whose first group is the number; null: the whole text."""
    column_type: str | None = None
    """Type of the column, as in FeatureSpec."""
