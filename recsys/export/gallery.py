"""Export of the gallery as a folder that opens from a disk: its pages, and lists computed beforehand.

In: a bundle. Out: index.html and map.html with a script each, pictures/, and data/ as folder.js of
recsys/serving/gallery reads it. Called by launch/export.py.
"""

import base64
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recsys.errors import UserError
from recsys.export.script import classic_script
from recsys.files import new_folder, write_text
from recsys.progress import progress_bar
from recsys.schema import UNKNOWN_ROW
from recsys.serving.recommender import Recommender
from recsys.serving.requests import VisitorRequest
from recsys.serving.shown import Shown

_PAGES = Path(__file__).parents[1] / "serving" / "gallery"
_ENTRIES = ("folder", "app")
_MAP_ENTRIES = ("folder", "map")
_COPIED = ("style.css", "map.css", "icon.svg", "masked.svg")
_BLOCK = 200
"""Items of a file."""
_LISTED, _DIALLED = 200, 48
_NEAR = 6
_LIKERS = 12
_VARIETY = 0.7
_HIGHEST_DIAL = 10.0
_SCALED = ("semantic", "style", "text")


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """Gallery as a folder that opens from a disk."""

    gallery: str | None = None
    """Folder that gets the gallery as files, which a browser opens without a server; null: none."""
    gallery_people: Annotated[int, Field(ge=1)] = 50
    """People of that folder, the first ones by row; each takes some 150 kB."""
    gallery_items: Annotated[int, Field(ge=1)] = 5000
    """Pictures of that folder at most; those of the people's lists come first."""


class _Writer:
    """Writes the data of one folder."""

    def __init__(self, bundle: Path, folder: Path):
        self.recommender = Recommender.open(bundle)
        self.shown = Shown(bundle)
        self.folder = folder

    def people(self, most: int) -> list[str]:
        """Return the first users who have a history, among the first ones by row."""
        first = self.shown.people("", 8 * most) if most else []
        return [person.id for person in first if person.likes][:most]

    def take(self, name: str, content: Any) -> None:
        """Write one file of data."""
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        write_text(self.folder / "data" / f"{name}.js", f'TESSERA.take("{name}",{text});\n')

    def person(self, user: str) -> dict[str, Any]:
        """Return a person's likes, and the lists of every dial at its ends."""
        own = self._list(user, _LISTED)
        lists = {"own": own, "variety": self._list(user, _DIALLED, diversity=_VARIETY)}
        first = own[:_DIALLED]
        for name in _SCALED:
            shares = [item["weights"][name] for item in first if name in item["weights"]]
            if shares:
                full = min(_HIGHEST_DIAL, len(shares) / max(sum(shares), 1e-3))
                lists[f"{name}:0"] = self._list(user, _DIALLED, dials={name: 0.0})
                lists[f"{name}:1"] = self._list(user, _DIALLED, dials={name: full})
        history = dict.fromkeys(reversed(self.shown.history(user)))
        likes = [asdict(self.shown.item(item)) for item in history]
        return {"likes": likes, "lists": lists, "taste": self._taste(user)}

    def _taste(self, user: str) -> dict[str, Any] | None:
        """Return a person's score of every item, where there is a map to show it on."""
        if not self.shown.map.layouts:
            return None
        taste = self.recommender.taste(VisitorRequest(user=user))
        return {"by": taste.by, "bytes": _base64(taste.scores_N.astype("<f4"))}

    def map(self, num_items: int) -> dict[str, Any]:
        """Write the arrays of the map, and return its card; without all items there is none."""
        found = self.shown.map
        card = {"version": self.shown.version, "items": num_items, "layouts": [], "groups": {}}
        if num_items != self.shown.num_items:
            return card
        for name in found.layouts:
            self.take(f"map-layouts-{name}", {"bytes": _base64(found.places(name))})
        for name in found.groups:
            self.take(f"map-groups-{name}", {"bytes": _base64(found.members(name))})
        groups = {name: [asdict(group) for group in found.groups[name]] for name in found.groups}
        return {**card, "layouts": found.layouts, "groups": groups}

    def _list(self, user: str | None, k: int, **more: Any) -> list[dict[str, Any]]:
        found = self.recommender.recommend(user=user, k=k, explain=True, **more).items
        return [
            {
                "id": item.id,
                "title": item.title,
                "artist": item.artist,
                "score": round(item.score, 4),
                "weights": {name: round(share, 3) for name, share in item.weights.items()},
                "reason": item.reason and {"text": item.reason.text},
            }
            for item in found
        ]

    def popular(self) -> list[dict[str, Any]]:
        """Return the list of somebody who is not known."""
        return self._list(None, _LISTED)

    def item(self, item: str, included: frozenset[str], people: frozenset[str]) -> dict[str, Any]:
        """Return an item's card, what is near to it, and who likes it, as far as the folder has them."""
        card = self.recommender.card(item)
        near = {}
        for by in (name for name in _SCALED if name in card.modalities):
            if by in self.recommender.router.content:
                found = self.recommender.similar(item, by=by, k=_NEAR).items
                near[by] = [other.id for other in found if other.id in included]
        likers = self.shown.likers(item)
        there = [user for user in likers if user in people]
        return {
            "card": asdict(self.shown.item(item)),
            "text": card.text,
            "near": near,
            "likers": {"count": len(likers), "users": there[:_LIKERS]},
        }


def write_gallery(bundle: Path, folder: Path, size: GalleryConfig) -> tuple[int, int]:
    """Write a gallery, and return its people and pictures.

    Raises:
        UserError: there is something in the folder that is no gallery.
    """
    if folder.exists() and not (folder / "gallery.js").is_file():
        raise UserError(f"gallery={folder}: is there and is no gallery; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as beside:
        (beside / "data").mkdir()
        (beside / "pictures").mkdir()
        _write_pages(beside)
        writer = _Writer(bundle, beside)
        people = writer.people(size.gallery_people)
        listed: dict[str, None] = {}
        for place, user in enumerate(progress_bar(people, desc="people", unit="item")):
            found = writer.person(user)
            writer.take(f"person-{place}", found)
            for part in (found["likes"], *found["lists"].values()):
                listed.update(dict.fromkeys(item["id"] for item in part))
        popular = writer.popular()
        listed.update(dict.fromkeys(item["id"] for item in popular))
        items = _included(writer.recommender, listed, size.gallery_items)
        pictures = _write_items(writer, items, frozenset(people))
        card = writer.map(len(items))
        offer = {
            "version": writer.shown.version,
            "items": len(items),
            "map": bool(card["layouts"]),
        }
        numbers = [{"id": user, "likes": len(writer.shown.history(user))} for user in people]
        writer.take(
            "index",
            {
                "offer": offer,
                "map": card,
                "block": _BLOCK,
                "people": numbers,
                "items": items,
                "pictures": pictures,
                "popular": popular,
            },
        )
    return len(people), len(items)


def _included(recommender: Recommender, listed: Iterable[str], most: int) -> list[str]:
    """Return the ids of the items of the lists, then of others up to `most`, by row."""
    bundle = recommender.bundle
    wanted = dict.fromkeys(listed)
    for row in range(UNKNOWN_ROW + 1, bundle.items.num_stored):
        if len(wanted) >= most:
            break
        wanted[bundle.item_id(row)] = None
    rows = bundle.item_rows(list(wanted)).tolist()
    return [item for _, item in sorted(zip(rows, wanted, strict=True))]


def _write_items(writer: _Writer, items: Sequence[str], people: frozenset[str]) -> list[int]:
    """Write items and their pictures; return 1 for each that has one, else 0."""
    included = frozenset(items)
    has_picture = []
    block: list[dict[str, Any]] = []
    for place, item in enumerate(progress_bar(items, desc="pictures", unit="item")):
        block.append(writer.item(item, included, people))
        content = writer.shown.picture(item)
        has_picture.append(int(content is not None))
        if content is not None:
            (writer.folder / "pictures" / f"{place}.jpg").write_bytes(content)
        if len(block) == _BLOCK or place + 1 == len(items):
            writer.take(f"items-{place // _BLOCK}", block)
            block = []
    return has_picture


def _write_pages(folder: Path) -> None:
    for name, script, entries in (
        ("index.html", "gallery.js", _ENTRIES),
        ("map.html", "map.js", _MAP_ENTRIES),
    ):
        page = (_PAGES / name).read_text(encoding="utf-8")
        module = f'<script type="module" src="/gallery/{entries[-1]}.js">'
        assert module in page, f"{name} has no {module}"
        page = page.replace(module, f'<script defer src="{script}">')
        page = page.replace('href="/"', 'href="index.html"').replace('"/gallery/', '"')
        write_text(folder / name, page)
        write_text(folder / script, classic_script(_PAGES, entries))
    for name in _COPIED:
        shutil.copyfile(_PAGES / name, folder / name)


def _base64(array: NDArray) -> str:
    """Return the bytes of an array [...] as text."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
