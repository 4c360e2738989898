"""Answers of a nearest-neighbour search: items asked about, their neighbours, and what they share.

In: rows that embedding/features/nearest.py found. Out: Answers, which recsys/report/neighbours.py shows
as a page and recsys/report/sheet.py as one picture. Called by launch/neighbours.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from embedding.features.catalogue import Catalogue
from embedding.features.nearest import Nearest
from embedding.features.store import FeatureTable
from recsys.errors import UserError
from recsys.report.items import Item, read_items
from recsys.report.page import COLOURS
from recsys.runtime.threads import ProcessConfig
from recsys.schema import Manifest

MODALITIES = {
    "semantic": "by subject",
    "style": "by painting style",
    "text": "by words",
}
"""Groups of a page, in order, and their meaning."""

MARKS = {"artist": COLOURS[3], "content": COLOURS[0], "tags": COLOURS[2]}
"""Colour of each property that a neighbour may share with the item asked about."""

WORDING = {"artist": "same artist", "content": "same content", "tags": "tags shared"}
"""Text of each mark."""


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """Settings of a nearest-neighbour search and its page.

    `exclude_same` holds for all modalities at once, so that the groups answer the same question and
    can be compared. Without it the nearest by style are often pictures of one series, and style and
    subject cannot be told apart. `content` leaves out pictures of the same thing: the nearest by
    style then share the style, not the subject. `artist` leaves out pictures by the same artist: the
    nearest by semantics then share the subject, and the nearest by style are by artists who paint
    alike. If the artist (or the content) of the item asked about is unknown, nothing is left out.
    """

    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads."""
    items: list[str] = field(default_factory=list)
    """Ids of the items asked about; empty: a seeded sample, spread over artists and contents."""
    num_queries: Annotated[int, Field(ge=1)] = 6
    """Items of the sample."""
    k: Annotated[int, Field(ge=1)] = 5
    """Neighbours of each modality."""
    exclude_same: Literal["none", "artist", "content"] = "none"
    """`artist` or `content`: items that share it with the one asked about are left out; `none`."""
    seed: int = 0
    """Seed of the sample."""
    sheet_width: int = 1400
    """Pixels of sheet.png."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An item beside the one asked about."""

    item: Item
    similarity: float
    """Cosine similarity."""
    same_artist: bool
    same_content: bool
    shared_tags: int
    """Number of tags it shares with the item asked about."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An item asked about and its neighbours by modality; best first."""

    item: Item
    groups: dict[str, list[Neighbour] | None]
    """None: the item has no vector of this modality."""


def neighbour(asked: Item, item: Item, similarity: float) -> Neighbour:
    """Return `item` with the properties it shares with the item asked about; unknown ones never count."""
    return Neighbour(
        item=item,
        similarity=similarity,
        same_artist=asked.artist is not None and asked.artist == item.artist,
        same_content=asked.content is not None and asked.content == item.content,
        shared_tags=len(set(asked.tags) & set(item.tags)),
    )


def known_marks(answers: list[Answer], exclude_same: str = "none") -> list[str]:
    """Return the marks that can appear: properties known of an item asked about, but the excluded one."""
    return [
        mark
        for mark in MARKS
        if mark != exclude_same and any(getattr(a.item, mark) for a in answers)
    ]


def summarise(answers: list[Answer]) -> dict[str, dict[str, Any]]:
    """Return, by modality, the number of neighbours shown and how many share what.

    Only neighbours of items whose artist (content, tags) is known count; a share is null where there
    are none. `tags` is the mean share of the item's tags.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name in answers[0].groups if answers else ():
        pairs = [(a.item, n) for a in answers for n in a.groups[name] or ()]
        artist = [n.same_artist for item, n in pairs if item.artist is not None]
        content = [n.same_content for item, n in pairs if item.content is not None]
        tags = [n.shared_tags / len(set(item.tags)) for item, n in pairs if item.tags]
        summary[name] = {"neighbours": len(pairs)}
        for mark, shares in (("artist", artist), ("content", content), ("tags", tags)):
            summary[name][mark] = sum(shares) / len(shares) if shares else None
    return summary


def has_pictures(answers: list[Answer]) -> bool:
    """Return whether any item has a picture to show."""
    items = [a.item for a in answers]
    items += [n.item for a in answers for group in a.groups.values() for n in group or ()]
    return any(item.picture is not None for item in items)


def why_empty(group: list[Neighbour] | None) -> str:
    """Return the sentence shown in place of an empty group."""
    return "It has no vector of this kind." if group is None else "No other item qualifies."


def check_request(config: NeighboursConfig, manifest: Manifest) -> None:
    """Raise UserError for settings that the data set cannot answer, all at once."""
    problems = []
    num_others = manifest.num_item_rows - 2  # without the unknown row and the item itself
    if config.k > num_others:
        problems.append(
            f"k={config.k}: expected 1 to {max(num_others, 0):,}; the catalogue of "
            f"{manifest.name!r} has {max(manifest.num_item_rows - 1, 0):,} items"
        )
    if config.exclude_same != "none":
        column = (manifest.recipe.get("items") or {}).get(config.exclude_same)
        if column is None:
            problems.append(
                f"exclude_same={config.exclude_same}: the recipe does not map "
                f"items.{config.exclude_same}; map it to a column and run launch/prepare.py again, "
                f"or use exclude_same=none"
            )
    if problems:
        raise UserError("\n  ".join(problems))


def read_answers(
    catalogue: Catalogue,
    manifest: Manifest,
    tables: Mapping[str, FeatureTable],
    rows: list[int],
    found: Mapping[str, Nearest],
) -> list[Answer]:
    """Return the items asked about and their neighbours, with their titles, pictures and tags."""
    shown = {row for n in found.values() for row in n.rows_QK.ravel().tolist() if row >= 0}
    items = read_items(catalogue, manifest, sorted(shown | set(rows)))
    has_vector = {name: table.has_vector(np.array(rows)) for name, table in tables.items()}
    answers = []
    for query, row in enumerate(rows):
        groups = {}
        for name, near in found.items():
            pairs = zip(near.rows_QK[query], near.similarities_QK[query], strict=True)
            groups[name] = (
                [neighbour(items[row], items[int(r)], float(s)) for r, s in pairs if r >= 0]
                if has_vector[name][query]
                else None
            )
        answers.append(Answer(item=items[row], groups=groups))
    return answers


def summary_lines(answers: list[Answer]) -> list[str]:
    """Return one line per modality: neighbours shown, and how many share artist or content."""
    lines = []
    for name, shares in summarise(answers).items():
        shown = ", ".join(
            f"same {mark} {shares[mark]:.0%}"
            for mark in ("artist", "content")
            if shares[mark] is not None
        )
        neighbours = f"{shares['neighbours']:,} shown"
        lines.append(f"nearest by {name}: {neighbours}{', ' if shown else ''}{shown}")
    return lines
