"""Text pairs: training and test examples of the text encoder, cleaned and counted.

In: the recipe's `pairs` over their raw files, or over the items file. Out: a table (anchor, positive,
perspective, entity, language) in the order of the files.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from duckdb.sqltypes import VARCHAR

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.sources import Source
from recsys.data.recipe import PERSPECTIVES, ItemsRecipe, PairsRecipe
from recsys.data.sql import literal, quoted

ELEMENTS = (
    "a abbr b big blockquote br center cite code dd del div dl dt em font h[1-6] hr i img ins li ol p "
    "pre q s small span strike strong sub sup table tbody td th thead tr tt u ul"
)
TAG = rf"(?i)</?({ELEMENTS.replace(' ', '|')})(\s[^<>]*)?/?>"
"""Pattern of HTML's text elements and of no others: titles are written in angle brackets too."""
ENTITY = r"&(#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);"
_CODE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True)
class PairCounts:
    """Counts of the pairs of all files; num_in = num_kept + the sum of dropped."""

    num_in: int = 0
    """Pairs of the files; each element of a list is one."""
    num_kept: int = 0
    num_cleaned: int = 0
    """Pairs in which HTML tags were taken out or HTML entities replaced, kept or not."""
    dropped: dict[str, int] = field(default_factory=dict)
    """`blank`, `identical` (to each other) and `repeated` (in every column), checked in this order."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return (
            f"{self.num_kept:,} of {self.num_in:,} (dropped: {reasons}; {self.num_cleaned:,} "
            f"cleaned of markup)"
        )


def pair_columns(pairs: PairsRecipe, key: str) -> dict[str, str | None]:
    """Return the columns that a file of pairs must have, by config key below `key`."""
    wanted: dict[str, str | None] = {
        f"{key}.anchor": pairs.anchor,
        f"{key}.positive": pairs.positive,
        f"{key}.entity": pairs.entity,
    }
    if pairs.perspective not in PERSPECTIVES:
        wanted[f"{key}.perspective"] = pairs.perspective
    if pairs.language and not is_code(pairs.language):
        wanted[f"{key}.language"] = pairs.language
    return wanted


def is_code(language: str) -> bool:
    """Return whether `language` is a code, such as ja or zh-Hans, and not the name of a column."""
    return _CODE.fullmatch(language) is not None


def build_pairs(
    engine: Engine, sources: Sequence[tuple[PairsRecipe, Source]], items: ItemsRecipe | None
) -> tuple[Table, PairCounts]:
    """Return the pairs of all files in their order, and their counts.

    Args:
        items: its file's id is the entity of pairs made from that file.
    """
    unescape: Any = html.unescape
    engine.connection.create_function("unescaped", unescape, [VARCHAR], VARCHAR)
    parts = [
        _part_sql(
            part, pairs, source, items.item_id if items and pairs.file == items.file else None
        )
        for part, (pairs, source) in enumerate(sources)
    ]
    reason = (
        "CASE WHEN anchor = '' OR positive = '' THEN 'blank' WHEN anchor = positive THEN "
        "'identical' END"
    )
    given = engine.create(
        "pairs_in", f"SELECT *, {reason} AS reason FROM ({' UNION ALL '.join(parts)})"
    )
    # The first of equal pairs is kept, in the order of the files. Two texts that belong together in
    # two languages, or for two entities, are two pairs.
    place = "part, source_row, i, j"
    columns = "anchor, positive, perspective, entity, language"
    kept = engine.create(
        "pairs",
        f"SELECT {columns} FROM {given} WHERE reason IS NULL QUALIFY "
        f"row_number() OVER (PARTITION BY {columns} ORDER BY {place}) = 1 ORDER BY {place}",
    )
    num_in, num_cleaned, blank, identical = engine.one(
        f"SELECT count(*), count(*) FILTER (WHERE is_cleaned), count(*) FILTER (WHERE reason = "
        f"'blank'), count(*) FILTER (WHERE reason = 'identical') FROM {given}"
    )
    engine.drop(given)
    num_kept = engine.count(kept)
    repeated = num_in - blank - identical - num_kept
    return kept, PairCounts(
        num_in=num_in,
        num_kept=num_kept,
        num_cleaned=num_cleaned,
        dropped={"blank": blank, "identical": identical, "repeated": repeated},
    )


def _part_sql(part: int, pairs: PairsRecipe, source: Source, item_id: str | None) -> str:
    """SQL of one file's pairs, cleaned, with their place: part, source_row, i, j."""
    perspective = (
        literal(pairs.perspective)
        if pairs.perspective in PERSPECTIVES
        else quoted(pairs.perspective)
    )
    language = "NULL"
    if pairs.language:
        language = literal(pairs.language) if is_code(pairs.language) else quoted(pairs.language)
    entity = pairs.entity or item_id
    anchors = _elements_sql(source, pairs.anchor, pairs.anchor_separator)
    positives = _elements_sql(source, pairs.positive, pairs.positive_separator)
    # A query for each list: what is unnested side by side would be zipped.
    lists = (
        f"SELECT source_row, {anchors} AS anchors, {positives} AS positives, {perspective} AS "
        f"perspective, {quoted(entity) if entity else 'NULL'} AS entity, {language} AS language "
        f"FROM {source.view}"
    )
    by_anchor = (
        f"SELECT * EXCLUDE (anchors), unnest(anchors) AS raw_anchor, "
        f"generate_subscripts(anchors, 1) AS i FROM ({lists})"
    )
    by_both = (
        f"SELECT * EXCLUDE (positives), unnest(positives) AS raw_positive, "
        f"generate_subscripts(positives, 1) AS j FROM ({by_anchor})"
    )
    plain = (
        f"SELECT *, {_plain_sql('raw_anchor')} AS plain_anchor, {_plain_sql('raw_positive')} AS "
        f"plain_positive FROM ({by_both})"
    )
    is_cleaned = "plain_anchor <> raw_anchor OR plain_positive <> raw_positive"
    by_default = "NULL" if entity else "nullif(anchor, '')"
    spaced = (
        f"SELECT *, {_spaced_sql('plain_anchor')} AS anchor, {_spaced_sql('plain_positive')} AS "
        f"positive FROM ({plain})"
    )
    return (
        f"SELECT {part} AS part, source_row, i, j, anchor, positive, CAST(perspective AS VARCHAR) "
        f"AS perspective, coalesce(nullif(trim(CAST(entity AS VARCHAR)), ''), {by_default}) AS "
        f"entity, nullif(trim(CAST(language AS VARCHAR)), '') AS language, {is_cleaned} AS "
        f"is_cleaned FROM ({spaced})"
    )


def _elements_sql(source: Source, column: str, separator: str | None) -> str:
    """SQL of a column's texts as a list: one text, or the texts between separators."""
    if column in source.lists:
        # A row without a text is a blank pair, as it is in a text column.
        texts = f"list_filter({quoted(column)}, lambda x: x IS NOT NULL)"
        return f"coalesce(nullif({texts}, []), [''])"
    text = f"coalesce({quoted(column)}, '')"
    return f"string_split({text}, {literal(separator)})" if separator else f"[{text}]"


def _plain_sql(text: str) -> str:
    """SQL of a text without markup: entities replaced, then tags taken out."""
    unescaped = (
        f"CASE WHEN regexp_matches({text}, {literal(ENTITY)}) THEN unescaped({text}) ELSE {text} "
        f"END"
    )
    return f"regexp_replace({unescaped}, {literal(TAG)}, ' ', 'g')"


def _spaced_sql(text: str) -> str:
    """SQL of a text in one Unicode form (NFC) with single spaces, none at its ends."""
    return rf"trim(regexp_replace(nfc_normalize({text}), '[\s\x{{00a0}}\x{{3000}}]+', ' ', 'g'))"
