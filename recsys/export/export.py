"""Export of a run to a bundle: one folder, written beside and renamed, that serves without torchrec.

In: W/runs/<name> with its checkpoint of the best validation, W/prepared, W/features and, where they are
there, W/encoders and the pictures. Out: W/bundles/<run>-<step>-<sha8>, and W/bundles/current that names
it.
Called by launch/export.py.
"""

import dataclasses
import datetime
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from recsys.bundle.bundle import Bundle
from recsys.bundle.items import item_features
from recsys.bundle.spec import (
    BUNDLE_VERSION,
    TWO_SIDED,
    WHOLE,
    BundleSpec,
    Widths,
    write_spec,
)
from recsys.bundle.tables import QuantisedTable
from recsys.checkpoint.integrity import best_checkpoint, damage_of
from recsys.checkpoint.read import StoredTables
from recsys.data.dataset import Dataset
from recsys.errors import UserError
from recsys.export.card import model_card
from recsys.export.catalogue import (
    interaction_times,
    served_manifest,
    write_catalogue,
    write_users,
    write_vocabularies,
)
from recsys.export.check import compare_scores, refuse_differences
from recsys.export.delta import bundle_in_making, following
from recsys.export.dense import export_dense, is_two_sided, match_weights
from recsys.export.exploration import write_posterior
from recsys.export.items import (
    copy_features,
    own_scales,
    write_item_side,
    write_train_count,
    write_vectors,
)
from recsys.export.map import MAX_ITEMS, write_map
from recsys.export.pictures import write_thumbnails
from recsys.export.reference import Reference, sample_batches
from recsys.export.revision import git_revision
from recsys.export.routes import export_routes
from recsys.export.tables import write_tables
from recsys.export.truth import write_truth
from recsys.files import json_text, write_text
from recsys.job import say, stage
from recsys.model.build import build_ranker
from recsys.model.dense_columns import names_of
from recsys.model.ranker import Ranker
from recsys.run.config import RunConfig
from recsys.run.fingerprint import made_from
from recsys.schema import Manifest, TableSpec

_NOT_DATA = ("bundle.json", "files.json", "README.md")
_MODALITIES = ("semantic", "style", "text")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Content of a bundle."""

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("thumbnail_pixels", "check_rows", "posterior_rows")
    """Integers that may be 0."""
    precision: Literal["int8", "fp16", "fp32"] = "int8"
    """Of the trainable tables: `int8` (a scale and an offset a row), `fp16` or `fp32`; item vectors are
    fp32 beside fp32 tables, else fp16."""
    check_rows: int = 20_000
    """Rows of the test split on which the bundle's scores are compared with the run's; 0: none."""
    max_auc_loss: float | None = 0.0005
    """AUC that int8 or fp16 tables may lose on these rows; an export that loses more is refused. null: no
    check."""
    posterior_rows: int = 20_000
    """Training rows from which the posterior of Thompson sampling is estimated (a server's
    `explore.thompson`); 0: none."""
    thumbnail_pixels: int = 256
    """Side of the catalogue's pictures in the bundle; 0: none."""
    map: bool | None = None
    """Lay the catalogue out for the gallery's map; null: up to 200,000 items."""
    encoders: bool = True
    """Copy the encoders, with which words and pictures are searched and new items come in."""

    def problems(self) -> list[str]:
        """Return a text for every number below 0."""
        return [
            f"{key}={value}: expected 0 or more"
            for key in (*self.MAY_BE_ZERO, "max_auc_loss")
            if (value := getattr(self, key)) is not None and value < 0
        ]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run and its data, opened to be exported."""

    workspace: Path
    manifest: Manifest
    config: RunConfig
    ranker: Ranker
    """Tables on the meta device."""
    stored: StoredTables
    vectors: dict[str, FeatureTable]
    """Feature tables by modality: all that the workspace has."""

    @property
    def prepared(self) -> Path:
        """Folder of the prepared data."""
        return self.workspace / "prepared"

    @property
    def read_vectors(self) -> dict[str, FeatureTable]:
        """Feature tables that the model reads, in its order."""
        return {name: self.vectors[name] for name in self.ranker.inputs.modality_dims}

    @property
    def tables(self) -> list[TableSpec]:
        """Tables that the model reads."""
        bags = self.ranker.inputs.embeddings.embedding_bags
        return [table for table in self.manifest.tables if table.name in bags]

    @property
    def half_tables(self) -> list[str]:
        """Tables that were trained in fp16."""
        return [name for name, table in self.config.tables.items() if table.precision == "fp16"]


def open_source(workspace: Path, config: RunConfig, manifest: Manifest) -> Source:
    """Return a run that was trained on the data and vectors that are here.

    Raises:
        UserError: there are no items to recommend; no best checkpoint, or a damaged one; a feature
            table that the model reads is missing.
    """
    if not manifest.num_item_rows:
        raise UserError(
            f"{workspace / 'prepared'}: data {manifest.name!r} has no items, so that there is nothing "
            f"to recommend; map interactions.item_id in the recipe and run launch/prepare.py again"
        )
    checkpoint = best_checkpoint(workspace / "runs" / config.run.name / "checkpoints")
    damage = damage_of(checkpoint)
    if damage is not None:
        raise UserError(
            f"{checkpoint}: the checkpoint is damaged ({damage}); put back a copy of it, or go on "
            f"training (launch/train.py), which skips it and saves another"
        )
    read = [name for name in config.model.modalities if manifest.has_modality(name)]
    folder, known = workspace / "features", (*_MODALITIES, *manifest.vectors)
    there = [name for name in known if (folder / name / "manifest.json").is_file()]
    others = [name for name in there if name not in read and manifest.has_modality(name)]
    vectors = open_features(workspace, [*read, *others], manifest, say)
    ranker = build_ranker(
        manifest=manifest,
        config=config.model,
        modality_dims={name: vectors[name].dim for name in read},
        seed=config.run.seed,
        forms=config.tables,
    )
    # Of data that was appended to since, later ids are unknown to the run.
    grown_rows = {t.name: t.num_rows for t in manifest.tables} if manifest.chain else {}
    stored = StoredTables(checkpoint, grown_rows)
    say(f"model: {config.model.name}, {checkpoint.name} (epoch {stored.state.epoch})")
    return Source(
        workspace=workspace,
        manifest=manifest,
        config=config,
        ranker=ranker,
        stored=stored,
        vectors=vectors,
    )


def export(source: Source, config: ExportConfig, *, threads: int, base: Path | None = None) -> Path:
    """Write the bundle of a run, make it the current one, and return its folder.

    Args:
        base: earlier bundle of the workspace, against which a delta is written too; where nothing has
            changed since, it is returned, and nothing is written.

    Raises:
        UserError: its scores differ from the run's, or smaller tables lose more AUC than allowed. Nothing
            is left of it, and `current` is as it was.
    """
    spec = _spec(source, config)
    bundles = source.workspace / "bundles"
    if base is not None and base.name == spec.name:
        say(f"nothing has changed since {base}: no delta")
        return base
    bundles.mkdir(exist_ok=True)
    spec = following(spec, base)
    with bundle_in_making(bundles, spec, base) as folder:
        spec = _write_model(folder, spec, source, config)
        _write_data(folder, spec, source, config, threads)
        has_map = spec.manifest.num_item_rows - 1 <= MAX_ITEMS if config.map is None else config.map
        if has_map:
            write_map(folder, spec, source.workspace / "maps", threads=threads)
        # The bundle is opened to make its routes, and then again, with them, to be compared.
        write_spec(folder, dataclasses.replace(spec, sizes=_sizes(folder)))
        measured = export_routes(folder)
        write_posterior(
            folder, source.prepared, source.manifest, source.ranker, config.posterior_rows
        )
        spec = dataclasses.replace(spec, sizes=_sizes(folder), measured=measured)
        write_spec(folder, spec)
        if config.check_rows:
            measured = {**_check(folder, source, config), **measured}
            spec = dataclasses.replace(spec, measured=measured)
            write_spec(folder, spec)
        run = source.workspace / "runs" / source.config.run.name
        card = model_card(spec, source.config, source.manifest, run)
        write_text(folder / "README.md", card)
    return bundles / spec.name


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every data file below a bundle, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _NOT_DATA
    }


def _write_model(
    folder: Path, spec: BundleSpec, source: Source, config: ExportConfig
) -> BundleSpec:
    """Write tables, graphs and the items' half; return the specification with the graphs' widths."""
    inputs = source.ranker.inputs
    with stage("tables") as writing:
        num_rows = write_tables(
            folder / "tables",
            source.stored,
            source.tables,
            precision=config.precision,
            half_tables=source.half_tables,
            first_order=spec.first_order,
        )
        writing.done(f"{len(source.tables)} tables, {num_rows:,} rows, {config.precision}")
    with stage("dense half"):
        dense = source.ranker.dense
        dense.load_state_dict(source.stored.read_dense())
        hidden, product, own = export_dense(folder / "dense", dense.eval(), inputs.sizes)
    # Items that are made with the request have no vectors to search among.
    retrieval = own + spec.first_order if own and not spec.items_at_request else 0
    widths = dataclasses.replace(spec.widths, hidden=hidden, product=product, retrieval=retrieval)
    spec = dataclasses.replace(spec, widths=widths, match_weights=match_weights(dense))
    with stage("items") as writing:
        num_items = source.manifest.num_item_rows
        write_vectors(folder / "items", source.vectors, num_items)
        names = item_features(spec.manifest)
        copy_features(folder / "items" / "features", source.prepared / "items", names)
        tables = {t.name: QuantisedTable(folder / "tables", t.name) for t in source.tables}
        write_item_side(folder, spec, tables, config.precision)
        dataset = Dataset(source.prepared, source.manifest, split="train", features=[])
        # Of all windows too, since their rows are known by the time of serving.
        write_train_count(folder / "items", dataset.array("items/train_count", num_items))
        writing.done(f"{num_items - 1:,}, vectors: {', '.join(source.vectors) or 'none'}")
    return spec


def _write_data(
    folder: Path, spec: BundleSpec, source: Source, config: ExportConfig, threads: int
) -> None:
    """Write vocabularies, users, catalogue, pictures and encoders."""
    prepared, manifest = source.prepared, source.manifest
    with stage("users and catalogue") as writing:
        num_ids = write_vocabularies(folder / "vocab", prepared, spec.manifest)
        last_time_U, first_time_N = interaction_times(prepared, manifest)
        write_users(folder / "users", prepared, manifest, last_time_U)
        columns = write_catalogue(folder / "catalogue", prepared, first_time_N)
        writing.done(f"{num_ids:,} ids; cards of {', '.join(columns)}")
    if write_truth(folder, source.workspace, manifest):
        say("truth: the drawn world's, for the gallery")
    if manifest.image_root is not None and config.thumbnail_pixels:
        with stage("thumbnails") as writing:
            num_pictures = write_thumbnails(
                folder / "catalogue",
                prepared,
                Path(manifest.image_root),
                num_items=manifest.num_item_rows,
                pixels=config.thumbnail_pixels,
                threads=threads,
                base=None if spec.parent is None else source.workspace / "bundles" / spec.parent,
            )
            writing.done(f"{num_pictures:,} of {config.thumbnail_pixels} pixels")
    if config.encoders:
        for kind in ("image", "text"):
            encoder = source.workspace / "encoders" / kind
            if encoder.is_dir():
                shutil.copytree(encoder, folder / "encoders" / kind)


def _check(folder: Path, source: Source, config: ExportConfig) -> dict[str, float]:
    """Return what the comparison with the run measured.

    Raises:
        UserError: the scores differ, with fp32 tables, or smaller ones lose more AUC than allowed.
    """
    reference = Reference(
        source.ranker,
        source.manifest,
        source.stored,
        source.read_vectors,
        half_tables=source.half_tables,
    )
    with stage("check") as checking:
        batches = sample_batches(
            source.prepared,
            source.manifest,
            source.ranker,
            split="test",
            num_rows=config.check_rows,
        )
        measured = compare_scores(Bundle.open(folder), reference, batches, source.manifest)
        checking.done(
            f"{measured['rows']:,.0f} rows, probabilities differ by at most "
            f"{measured['greatest_difference']:.1e}; AUC {measured['auc_full']:.5f} of the run, "
            f"{measured['auc_exported']:.5f} of the bundle"
        )
    refuse_differences(measured, config.precision, config.max_auc_loss)
    return measured


def _spec(source: Source, config: ExportConfig) -> BundleSpec:
    """Return the specification as far as it is known before anything is written."""
    inputs, manifest, run = source.ranker.inputs, source.manifest, source.config.run
    item_features = tuple(inputs.item_columns.feature_names)
    item_dense = names_of(inputs.item_dense)
    sources = {feature.name: feature.source for feature in manifest.all_features}
    compared = () if inputs.modality is None else tuple(inputs.modality.sequence_features)
    return BundleSpec(
        run=run.name,
        step=source.stored.state.step,
        sha8=_hash(source, config),
        kind=TWO_SIDED if is_two_sided(source.ranker.dense) else WHOLE,
        ranker=source.config.model.name,
        precision=config.precision,
        user_features=tuple(inputs.user_columns.feature_names),
        item_features=item_features,
        user_dense=names_of(inputs.user_dense),
        item_dense=item_dense,
        modality_names=tuple(source.ranker.modality_names),
        vector_names=tuple(inputs.modality_dims),
        interests=tuple(inputs.interests),
        interest_shrinkage=source.config.model.interest_shrinkage,
        widths=Widths(modalities={name: table.dim for name, table in source.vectors.items()}),
        manifest=served_manifest(source.prepared, manifest),
        first_order=source.config.model.first_order,
        vector_scales=own_scales(source.vectors),
        similarity_tiers=0 if inputs.similarity is None else inputs.similarity.num_tiers,
        similarity_features=compared,
        items_at_request=any(sources[name] != "item" for name in (*item_features, *item_dense)),
        git_revision=git_revision(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _hash(source: Source, config: ExportConfig) -> str:
    """Return a hash of what the bundle is made from: equal, the bundles score alike."""
    origin = made_from(source.workspace, source.stored.path, source.vectors, config)
    content = json_text({**origin, "version": BUNDLE_VERSION})
    return hashlib.sha256(content.encode()).hexdigest()[:8]
