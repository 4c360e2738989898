"""Spelling variants of ids, and the overlap of the ids of log and catalogue.

Ids are compared as text, so 7 and 007 are two users. `gather_ids` gathers the different ids of the log
and of the users or items file once; all the rest works on that table.
"""

import unicodedata
from dataclasses import dataclass

from recsys.data.prepare.engine import Engine, Table
from recsys.data.sql import literal

NUM_EXAMPLES = 3
_BLANKS = r"\s\x{0085}\x{00a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_SEPARATORS = r"[,''\x{2019} ]"

VARIANTS = {
    "zero-width characters": (
        r"regexp_replace(TEXT, '[\x{00ad}\x{200b}-\x{200f}\x{2060}\x{feff}]', '', 'g')"
    ),
    "tabs": r"trim(regexp_replace(TEXT, '\t+', ' ', 'g'), ' ')",
    "non-breaking spaces": r"trim(regexp_replace(TEXT, '[\x{00a0}\x{202f}]+', ' ', 'g'), ' ')",
    "blanks": f"trim(regexp_replace(TEXT, '[{_BLANKS}]+', ' ', 'g'), ' ')",
    "Unicode forms (NFC and NFD)": "nfc_normalize(TEXT)",
    "thousands separators": (
        f"CASE WHEN regexp_full_match(TEXT, '[-+]?[0-9]{{1,3}}({_SEPARATORS}[0-9]{{3}})+([.][0-9]+)?') "
        f"THEN regexp_replace(TEXT, '{_SEPARATORS}', '', 'g') ELSE TEXT END"
    ),
    "plus signs": r"regexp_replace(TEXT, '^[+]([0-9])', '\1')",
    "exponents": (  # as many decimals as the type keeps, so that nothing is rounded
        "CASE WHEN regexp_full_match(TEXT, '-?[0-9]+([.][0-9]{1,9})?[eE][+]?[0-9]{1,2}') THEN "
        "coalesce(regexp_replace(CAST(try_cast(TEXT AS DECIMAL(38, 9)) AS VARCHAR), '[.]?0+$', ''), "
        "TEXT) ELSE TEXT END"
    ),
    "zeros in front": r"regexp_replace(TEXT, '^(-?)0+([0-9]+([.][0-9]+)?)$', '\1\2')",
    "zeros behind the decimal point": (
        r"regexp_replace(TEXT, '^(-?[0-9]+)(?:[.]0+|([.][0-9]*[1-9])0+)$', '\1\2')"
    ),
}
"""Spelling variants by name, each with SQL that normalises it; TEXT is replaced by the id. They are
applied in order."""
_MAY_DIFFER = "regexp_matches(id, '[^!-~]|^[+]|^-?0|^-?[0-9]+[.,''eE]')"
"""SQL of a cheap test that most ids fail: only the others are normalised."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Numbers of different ids of the log and of a catalogue, and examples of the missing ones."""

    num_log: int
    num_listed: int
    num_shared: int
    only_log: tuple[str, ...]
    """The first few that the catalogue lacks."""
    only_listed: tuple[str, ...]
    """The first few that the log lacks."""


def gather_ids(engine: Engine, log_ids: str, listed_ids: str | None) -> Table:
    """Return the table of different ids: (id, in_log, is_listed).

    Args:
        log_ids, listed_ids: SQL of one column `id`.
    """
    parts = f"SELECT DISTINCT id, true AS in_log, false AS is_listed FROM ({log_ids})"
    if listed_ids:
        parts += f" UNION ALL SELECT id, false, true FROM ({listed_ids})"
    return engine.create(
        "ids",
        f"SELECT id, bool_or(in_log) AS in_log, bool_or(is_listed) AS is_listed FROM ({parts}) "
        f"WHERE id IS NOT NULL GROUP BY id",
        is_temporary=True,
    )


def overlap_of(engine: Engine, ids: Table) -> Overlap:
    """Count what log and catalogue lack of each other."""

    def first(condition: str) -> tuple[str, ...]:
        query = f"SELECT id FROM {ids} WHERE {condition} ORDER BY id LIMIT {NUM_EXAMPLES}"
        return tuple(row[0] for row in engine.rows(query))

    num_log, num_listed, num_shared = engine.one(
        f"SELECT count(*) FILTER (WHERE in_log), count(*) FILTER (WHERE is_listed), "
        f"count(*) FILTER (WHERE in_log AND is_listed) FROM {ids}"
    )
    return Overlap(
        num_log=num_log,
        num_listed=num_listed,
        num_shared=num_shared,
        only_log=first("NOT is_listed"),
        only_listed=first("NOT in_log"),
    )


def two_spellings(engine: Engine, ids: Table, what: str, catalogue: str | None) -> str | None:
    """Return a sentence on the ids that differ by spelling variants alone, None if there are none.

    It names every variant found, with the number of ids and a few examples, each beside the id it
    probably means.

    Args:
        ids: of `gather_ids`.
        what: "user" or "item".
        catalogue: name of its file; None where ids stand in the log alone.
    """
    pairs = _pairs_of_spellings(engine, ids, catalogue)
    (count,) = engine.one(f"SELECT count(DISTINCT plain) FROM {pairs}")
    found = engine.rows(
        f"SELECT variants, count(*) AS n, arg_min([one.id, one.place, other, other_place], other, "
        f"{NUM_EXAMPLES}) FROM {pairs} GROUP BY variants ORDER BY n DESC, variants"
    )
    engine.drop(pairs)
    if not count:
        return None
    causes = []
    for bits, number, examples in found:
        cause = " with ".join(name for k, name in enumerate(VARIANTS) if bits >> k & 1)
        shown = "; ".join(
            f"{_shown(one, other)}{one_place} and {_shown(other, one)}{other_place}"
            for one, one_place, other, other_place in examples
        )
        causes.append(f"{cause}{f' in {number:,}' if len(found) > 1 else ''}, such as {shown}")
    a = "an" if what == "item" else "a"
    are = f"{count:,} {what}{' is' if count == 1 else 's are'}"
    return (
        f"{are} written in more than one way, and each way counts as {a} {what} of its own: "
        f"{' | '.join(causes)}"
    )


def _pairs_of_spellings(engine: Engine, ids: Table, catalogue: str | None) -> Table:
    """Return ids with the same plain form: (plain, one, other, other_place, variants)."""
    place = "''"
    if catalogue:
        place = (
            f"CASE WHEN in_log AND is_listed THEN ' (both)' WHEN in_log THEN ' (log)' "
            f"ELSE {literal(f' ({catalogue})')} END"
        )
    plain = plain_ids_sql(f"SELECT id, {place} AS place FROM {ids} WHERE {_MAY_DIFFER}")
    respelled = engine.create("respelled", f"FROM ({plain}) WHERE plain <> id", is_temporary=True)
    spellings = engine.create(
        "spellings",
        f"FROM {respelled} UNION ALL SELECT id, {place}, id, 0 FROM {ids} "
        f"WHERE id IN (SELECT plain FROM {respelled})",
        is_temporary=True,
    )
    # Each group is shown by its plain form if some file has it, else by its first id.
    rank = "CASE WHEN id = plain THEN '' ELSE id END"
    one = "struct_pack(id, place, variants)"
    pairs = engine.create(
        "pairs_of_spellings",
        f"SELECT s.plain, one, s.id AS other, s.place AS other_place, s.variants | one.variants AS "
        f"variants FROM {spellings} s JOIN (SELECT plain, arg_min({one}, {rank}) AS one FROM {spellings} "
        f"GROUP BY plain HAVING count(*) > 1) f ON s.plain = f.plain AND s.id <> one.id",
        is_temporary=True,
    )
    engine.drop(respelled, spellings)
    return pairs


def plain_ids_sql(query: str) -> str:
    """SQL that adds to the rows of a query on `id` its `plain` form, every variant normalised.

    Also added: `variants`, a bit for each variant that the id had, in the order of VARIANTS.
    """
    query = f"SELECT *, id AS plain, 0 AS variants FROM ({query})"
    for k, undone in enumerate(VARIANTS.values()):
        query = (
            f"SELECT * EXCLUDE (undone) REPLACE (undone AS plain, variants | CASE WHEN undone <> plain "
            f"THEN {1 << k} ELSE 0 END AS variants) FROM "
            f"(SELECT *, {undone.replace('TEXT', 'plain')} AS undone FROM ({query}))"
        )
    return query


def _shown(text: str, beside: str) -> str:
    """Return an id as Python writes it; by code points where nobody could see what differs."""
    is_visible = all(unicodedata.is_normalized("NFC", t) for t in (text, beside))
    return (repr if is_visible else ascii)(text)
