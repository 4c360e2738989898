"""Thumbnails of a delta: taken from the base where the picture is the same, made where it is not."""

import datetime
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recsys.bundle.vocabulary import write_vocabulary
from recsys.export import pictures
from recsys.export.catalogue import write_catalogue
from recsys.export.pictures import write_thumbnails

NAMES = [None, "a.png", "b.png", "c.png", "none.png", None]
IDS = [None, "one", "two", "three", "four", "five"]


def prepared_items(folder, ids, names):
    folder.mkdir()
    table = pa.table({"item_id": pa.array(ids, pa.string()), "image": pa.array(names, pa.string())})
    pq.write_table(table, folder / "items.parquet")
    return folder


def thumbnails(bundle, prepared, raw, base=None, pixels=16):
    """Write the catalogue, vocabulary and thumbnails of a bundle; return these by row."""
    folder = bundle / "catalogue"
    write_catalogue(folder, prepared, np.ones(6, np.int64))
    ids = pq.read_table(prepared / "items.parquet")["item_id"].to_pylist()[1:]
    blocks = [(np.arange(1, 6), ids)]
    write_vocabulary(bundle / "vocab", "item_id", num_rows=6, blocks=blocks)
    number = write_thumbnails(
        folder, prepared, raw, num_items=6, pixels=pixels, threads=1, base=base
    )
    offsets, content = (np.load(folder / f"pictures{part}.npy") for part in (".offsets", ""))
    found = [content[a:b].tobytes() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert number == sum(map(bool, found))
    return found


def test_thumbnails_of_unchanged_pictures_are_taken_and_all_others_made(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    for shade, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        Image.new("RGB", (40, 40), (50 * shade, 90, 20)).save(raw / name)
    before = thumbnails(tmp_path / "base", prepared_items(tmp_path / "p", IDS, NAMES), raw)
    assert [bool(content) for content in before] == [False, True, True, True, False, False]
    since = os.stat(raw / "d.png").st_mtime + 10
    spec = SimpleNamespace(
        sizes={"catalogue/pictures.npy": 1},
        id_type=lambda table: None,
        created=datetime.datetime.fromtimestamp(since, datetime.UTC).isoformat(),
    )
    monkeypatch.setattr(pictures, "read_spec", lambda bundle: spec)
    decoded, load = [], pictures.load_pictures

    def counting(pool, root, names, size):
        decoded.append(names)
        return load(pool, root, names, size)

    monkeypatch.setattr(pictures, "load_pictures", counting)
    # Item two has another picture, that of three is drawn anew, six is new, one has moved.
    Image.new("RGB", (40, 40), "white").save(raw / "c.png")
    os.utime(raw / "c.png", (since + 5, since + 5))
    ids = [None, "three", "two", "one", "six", "five"]
    names = [None, "c.png", "d.png", "a.png", "b.png", None]
    moved = prepared_items(tmp_path / "moved", ids, names)
    found = thumbnails(tmp_path / "new", moved, raw, base=tmp_path / "base")
    assert decoded.pop() == [None, "c.png", "d.png", None, "b.png", None]
    assert found[3] == before[1]
    assert found == thumbnails(tmp_path / "whole", moved, raw), "as without a base"
    larger = thumbnails(tmp_path / "larger", moved, raw, base=tmp_path / "base", pixels=24)
    assert decoded.pop() == names, "thumbnails of another size are none"
    assert larger[3] != before[1]
