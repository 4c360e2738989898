"""Specification of a bundle: bundle.json, what was exported, from what, and what was measured then.

    bundles/<run>-<step>-<sha8>/   one bundle; beside it the file `current` names the one that serves
      bundle.json                  BundleSpec
      files.json                   sha256 of every file (recsys/listing.py)
      README.md                    model card
      tombstones.json              ids that are gone (recsys/bundle/tombstones.py)
      dense/ tables/ items/ users/ vocab/ catalogue/ routes/ map/ encoders/
    deltas/                        what changed from bundle to bundle (recsys/bundle/delta.py)

Written by recsys/export, read by Bundle.open. Needs neither torchrec nor fbgemm nor duckdb.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.errors import UserError
from recsys.files import read_json, reading, write_json, write_text
from recsys.listing import check_listing
from recsys.record_types import misfits
from recsys.schema import DenseSpec, FeatureSpec, Manifest, leaves_folder, manifest_of

BUNDLE_VERSION = 1
EXPORT_AGAIN = "run launch/export.py again"
CURRENT = "current"
"""File beside the bundles that names the one to serve. A file, not a link: object stores and copies
keep it, and `write_text` replaces it in one step."""

TWO_SIDED = "two_sided"
"""Kind of a bundle whose dense half is cut into user, item and combination; the item's is stored."""
WHOLE = "whole"
"""Kind of a bundle whose dense half reads user and item together."""
PRECISIONS = ("int8", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths of the tensors of a bundle; 0 where there is no such tensor."""

    modalities: dict[str, int]
    """Vector width E by modality: all that the workspace had, of which the model reads some."""
    hidden: int = 0
    """Width H of the user vector and of the items' projected vectors."""
    product: int = 0
    """Width D of the second-order product."""
    retrieval: int = 0
    """Width R of the retrieval vectors; 0: the model's logit has no inner product of user and item."""


@dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """The content of bundle.json."""

    run: str
    """Name of the run."""
    step: int
    """Step of its checkpoint."""
    sha8: str
    """Hash of the content of all data files: equal, the bundles score alike."""
    kind: str
    """`two_sided` or `whole`."""
    ranker: str
    """`model.name` of the run."""
    precision: str
    """Of the trainable tables: `int8`, `fp16` or `fp32`."""
    user_features: tuple[str, ...]
    """Features of the user side that the model reads, in its order: of users, histories, context."""
    item_features: tuple[str, ...]
    """Features of the item side that the model reads, in its order."""
    modality_names: tuple[str, ...]
    """Names of the M modality weights, in order; the dials have this order too."""
    vector_names: tuple[str, ...]
    """Modalities whose vectors the model reads, in its order."""
    interests: tuple[tuple[str, str], ...]
    """(modality, history feature) of every interest vector, in order."""
    widths: Widths
    manifest: Manifest
    """What encoding needs of the data's manifest: no checksums, no recipe."""
    interest_shrinkage: float = 0.0
    """Added to the number of items that the sum of their vectors is divided by for an interest vector."""
    user_dense: tuple[str, ...] = ()
    """Dense features of the user side that the model reads, in its order."""
    item_dense: tuple[str, ...] = ()
    """Dense features of the item side that the model reads, in its order."""
    first_order: bool = True
    """Whether tables hold a first-order weight."""
    match_weights: tuple[float, ...] = ()
    """Weights v [M] of the match of user and modality in the logit, in the order of `modality_names`, for
    explanations; empty: the model has no match, or the bundle is of a version that kept none."""
    vector_scales: dict[str, float] = field(default_factory=dict)
    """Modalities of own vectors, which new items may bring along, with the number that theirs are
    multiplied by; bundles of earlier versions take none."""
    similarity_tiers: int = 0
    """Tiers of the histogram of similarities; 0: none."""
    similarity_features: tuple[str, ...] = ()
    """Histories whose items are compared, in the order of their histograms."""
    similarity_feature: str | None = None
    """The only one, in bundles of earlier versions."""
    items_at_request: bool = False
    """Whether the item side reads context, so that it cannot be computed beforehand."""
    parent: str | None = None
    """Name of the bundle before it in its chain, of which a delta makes it; null: exported whole."""
    chain: str | None = None
    """Name of the whole bundle that its chain begins with; null: its own."""
    sequence: int = 0
    """Its place in the chain: deltas since the whole bundle."""
    git_revision: str | None = None
    """Commit of the code that exported; null: not known."""
    created: str = ""
    """Time of the export, ISO 8601, UTC."""
    measured: dict[str, float] = field(default_factory=dict)
    """What the export measured: `rows`, `greatest_difference`, `auc_full`, `auc_exported`, ..."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of every data file below the bundle, by relative path."""
    version: int = BUNDLE_VERSION

    @property
    def name(self) -> str:
        """Folder name; answers carry it as the bundle's version."""
        return f"{self.run}-{self.step}-{self.sha8}"

    @property
    def compared(self) -> tuple[str, ...]:
        """Histories whose items are compared, of a bundle of any version."""
        earlier = (self.similarity_feature,) if self.similarity_feature else ()
        return self.similarity_features or earlier

    @property
    def dial_names(self) -> tuple[str, ...]:
        """Modalities that a request may scale, in the order of its dials."""
        return self.modality_names or self.vector_names

    def feature(self, name: str) -> FeatureSpec:
        """Return a feature of the manifest by its name."""
        return next(f for f in self.manifest.features if f.name == name)

    @property
    def dense_names(self) -> list[str]:
        """Dense features that the model reads, in the order of a batch's columns."""
        read = {*self.user_dense, *self.item_dense}
        return [feature.name for feature in self.manifest.dense if feature.name in read]

    def dense(self, name: str) -> DenseSpec:
        """Return a dense feature of the manifest by its name."""
        return next(f for f in self.manifest.dense if f.name == name)

    def id_type(self, table: str) -> str | None:
        """Return the type of the raw column of users' or items' ids; None for other tables."""
        if table not in ("user_id", "item_id"):
            return None
        types = (f.column_type for f in self.manifest.features if f.name == table)
        return next(types, None)


def check_bytes(folder: Path) -> None:
    """Compare every byte of a bundle with its files.json.

    Raises:
        UserError: a file is missing or has changed, or there is no files.json; names it.
    """
    if not (folder / "files.json").is_file():
        raise UserError(f"{folder / 'files.json'}: missing; {EXPORT_AGAIN}")
    check_listing(folder, EXPORT_AGAIN)


def content_hash(checksums: Mapping[str, str]) -> str:
    """Return the `sha8` of the sha256 of every data file by relative path."""
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


def write_spec(folder: Path, spec: BundleSpec) -> None:
    """Write bundle.json."""
    write_json(folder / "bundle.json", dataclasses.asdict(spec))


def read_spec(folder: Path) -> BundleSpec:
    """Return the content of a bundle's bundle.json.

    Raises:
        UserError: the file is missing or broken, or of another version; it names the file.
    """
    path = folder / "bundle.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no bundle here; expected a folder written by launch/export.py, or the file "
            f"`{CURRENT}` beside its bundles"
        )
    with reading(path, EXPORT_AGAIN):
        raw = read_json(path, EXPORT_AGAIN)
        if raw["version"] != BUNDLE_VERSION:
            raise UserError(f"bundle version {raw['version']!r}, expected {BUNDLE_VERSION}")
        spec = _spec_of(raw)
        if problems := misfits(spec):
            raise UserError("; ".join(problems)[:400])
        outside = [name for name in spec.sizes if leaves_folder(name)]
        if outside:
            raise UserError(f"{outside[0]!r} leaves the folder of the bundle")
    return spec


def _spec_of(raw: Mapping[str, Any]) -> BundleSpec:
    known = {f.name for f in dataclasses.fields(BundleSpec)}
    lists = ("user_features", "item_features", "modality_names", "vector_names")
    # Bundles of earlier versions lack these.
    later = ("user_dense", "item_dense", "match_weights", "similarity_features")
    return BundleSpec(**{
        **{name: value for name, value in raw.items() if name in known},
        **{name: tuple(raw[name]) for name in lists},
        **{name: tuple(raw.get(name, ())) for name in later},
        "interests": tuple((modality, feature) for modality, feature in raw["interests"]),
        "widths": Widths(**raw["widths"]),
        # JSON has no nan: null is a value that does not exist, as a recall without users.
        "measured": {n: math.nan if v is None else v for n, v in raw["measured"].items()},
        "manifest": manifest_of(raw["manifest"]),
    })


def point_to(bundles: Path, name: str) -> None:
    """Make a bundle below `bundles` the current one, in one step."""
    write_text(bundles / CURRENT, f"{name}\n")


def resolve(path: str | Path) -> Path:
    """Return a bundle's folder, given it or the file `current` that names it.

    Raises:
        UserError: `current` is broken, or names no folder beside it.
    """
    path = Path(path)
    if not path.is_file():
        return path
    with reading(path, EXPORT_AGAIN):
        name = path.read_text(encoding="utf-8").strip()
        if not name or Path(name).name != name or name.startswith("."):
            raise UserError(f"names {name[:100]!r}, expected a folder beside it")
    return path.parent / name
