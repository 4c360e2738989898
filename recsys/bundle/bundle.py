"""Bundle: an exported run, opened to serve; everything in it is memory-mapped.

Called by recsys/serving, launch/recommend.py and the check of recsys/export. Needs neither torchrec nor
fbgemm nor duckdb.
"""

import os
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.catalogue import Catalogue
from recsys.bundle.items import ItemRow, Items
from recsys.bundle.spec import EXPORT_AGAIN, BundleSpec, check_bytes, read_spec, resolve
from recsys.bundle.tables import QuantisedTable
from recsys.bundle.tombstones import read_tombstones
from recsys.bundle.users import UserStore
from recsys.bundle.vocabulary import Vocabulary
from recsys.data.encode import Encoder
from recsys.errors import UserError
from recsys.files import reading
from recsys.locks import share
from recsys.schema import UNKNOWN_ROW

VERIFICATIONS = ("sizes", "sha256")


class Bundle:
    """One opened bundle; `open` makes it."""

    def __init__(self, folder: Path, spec: BundleSpec):
        """Map the files.

        Raises:
            DamagedFileError: a file is missing or broken; the message names it.
        """
        self.folder = folder
        self.spec = spec
        # Open as long as the bundle is, so that `compact` of chain.py spares it.
        weakref.finalize(self, os.close, share(folder / "bundle.json"))
        self.gone_items = read_tombstones(folder)["item_id"]
        """Ids of items that an earlier bundle knew, and when each went, in seconds since 1970."""
        read = {spec.feature(name).table for name in (*spec.user_features, *spec.item_features)}
        self.tables = {name: QuantisedTable(folder / "tables", name) for name in sorted(read)}
        self.vocabularies = {
            table.name: Vocabulary(folder / "vocab", table.name, spec.id_type(table.name))
            for table in spec.manifest.tables
            if table.vocabulary is not None
        }
        self.items = Items(folder / "items", spec)
        self.users = UserStore(folder / "users", spec)
        self.catalogue = Catalogue(folder / "catalogue", spec)

    @classmethod
    def open(cls, path: str | Path, verify: str = "sizes") -> "Bundle":
        """Open a bundle.

        Args:
            path: its folder, or the file `current` beside bundles.
            verify: `sizes`: every file is there in full length; `sha256`: every byte is compared too.

        Raises:
            UserError: no bundle there, one of another version, or a damaged one; names the file.
        """
        assert verify in VERIFICATIONS, f"{verify} is none of {VERIFICATIONS}"
        folder = resolve(path)
        spec = read_spec(folder)
        for name, num_bytes in spec.sizes.items():
            with reading(folder / name, EXPORT_AGAIN):
                found = (folder / name).stat().st_size
                if found != num_bytes:
                    raise UserError(f"{found:,} bytes, bundle.json says {num_bytes:,}")
        if verify == "sha256":
            check_bytes(folder)
        return cls(folder, spec)

    @property
    def version(self) -> str:
        """Name of the bundle, which answers carry."""
        return self.spec.name

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of raw values of a request.

        Raises:
            UserError: the data was prepared by a version that kept no rules.
        """
        return Encoder(self.folder, self.spec.manifest, self.vocabularies)

    def encoder_folder(self, kind: str) -> Path | None:
        """Return the folder of the encoder of `image` or `text`; None where the bundle has none."""
        folder = self.folder / "encoders" / kind
        return folder if folder.is_dir() else None

    def user_row(self, user_id: str | None) -> int:
        """Return a user's row; 0 for None and for a user that is not known."""
        if user_id is None or "user_id" not in self.vocabularies:
            return UNKNOWN_ROW
        return self.vocabularies["user_id"].get(user_id, UNKNOWN_ROW)

    def item_rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of items [N], those added included; 0 for those that are not known."""
        if "item_id" not in self.vocabularies:
            return np.zeros(len(item_ids), np.int64)
        return self.vocabularies["item_id"].rows_of(item_ids)

    def item_id(self, row: int) -> str:
        """Return the id of an item's row; "" for the unknown row 0."""
        return self.vocabularies["item_id"].id_of(row)

    def add_item(
        self, item_id: str, item: ItemRow, card: Mapping[str, Any], picture: bytes | None = None
    ) -> int:
        """Add an item in memory and return its row; an id that is known is left as it is.

        Args:
            item: from `BundleScorer.encode_item`.
            card: columns of the catalogue by name (recsys.bundle.catalogue.COLUMNS).
            picture: thumbnail (JPEG).
        """
        vocabulary = self.vocabularies["item_id"]
        if item_id in vocabulary:
            return vocabulary[item_id]
        row = self.items.add(item)
        self.catalogue.add({**card, "item_id": item_id}, picture)
        assert vocabulary.add(item_id) == row == len(self.catalogue) - 1, "rows follow each other"
        return row
