"""Items as pages show them: title, artist, tags, and the picture as the encoder saw it.

In: prepared/items.parquet and the pictures. Out: Items, and their pictures as HTML. Called by the
pages of this folder and by the jobs that make them.
"""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from embedding.features.catalogue import Catalogue
from embedding.image.pictures import UnusablePictureError, load_picture, resolve_picture
from recsys.schema import Manifest

PICTURE_SIZE = 336
"""Side of the pictures that are read: twice what a page shows, for sharp screens."""


def short(text: str) -> str:
    """Cut what is longer than a page wants."""
    return text if len(text) <= 120 else text[:117] + "..."


@dataclass(frozen=True, kw_only=True)
class Item:
    """Title, artist, tags and picture of an item, for people."""

    item_id: str
    title: str | None = None
    artist: str | None = None
    content: str | None = None
    tags: tuple[str, ...] = ()
    picture: Image.Image | None = None
    """Square, as the encoder saw it; None where there is none to show."""

    @property
    def name(self) -> str:
        """Return the title, else the id; cut where it is longer than a page wants."""
        return short(self.title or self.item_id)


def read_items(catalogue: Catalogue, manifest: Manifest, rows: list[int]) -> dict[int, Item]:
    """Return the items at ascending rows; a picture that cannot be used is None."""
    names = ("item_id", "title", "artist", "content", "tags", "image")
    columns = {name: catalogue.column(name, rows) for name in names}
    root = Path(manifest.image_root).resolve() if manifest.image_root else None
    items = {}
    for index, row in enumerate(rows):
        known = {name: columns[name][index] for name in names}
        image = known.pop("image")
        items[row] = Item(
            **{**known, "tags": tuple(known["tags"] or ())}, picture=picture_of(root, image)
        )
    return items


def picture_of(root: Path | None, name: str | None) -> Image.Image | None:
    """Return an item's picture as the encoder saw it: the centre square."""
    if root is None or name is None:
        return None
    try:
        return Image.fromarray(load_picture(resolve_picture(root, name), PICTURE_SIZE))
    except UnusablePictureError:
        return None


def picture_html(item: Item, side: int, over: str = "") -> str:
    """Return the picture as a JPEG in the page, at most `side` pixels wide; or a grey square."""
    if item.picture is None:
        return f'<div class="picture"><span class="empty">no picture</span>{over}</div>'
    small = item.picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    image = f'<img alt="{html.escape(item.name)}" src="data:image/jpeg;base64,{data}">'
    return f'<div class="picture">{image}{over}</div>'
