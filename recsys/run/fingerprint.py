"""The fingerprint of a run: the keys that decide its result, of its configuration and of its data.

One set of keys for every question whether a result is still the one asked for: whether a run may go
on (recsys/run/folder.py), whether a study may take a run, an evaluation or an earlier search for its
own (recsys/study/, launch/compare.py). Everything else, such as ranks, plan or device, is how a run
is carried out.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embedding.features.store import read_feature_manifest
from recsys.files import sha256_of
from recsys.schema import Manifest, identity_of, read_manifest

_LATER_KEYS = ("train.splits", "train.order", "train.replay")
"""Of the keys that decide, those that came later and are null or 0 in most runs."""
_AS_BEFORE = {**dict.fromkeys((*_LATER_KEYS, "init")), "model.interest_shrinkage": 0.0}
"""All keys that came later, of the model too, with the value at which a run is as before."""
_TRAIN_KEYS = ("global_batch_size", "num_lanes", "metric")
_CANDIDATES = 2
"""Way in which an evaluation draws candidates and breaks ties; another, and rankings are others."""
EXTENDABLE = ("train.epochs", "train.patience", "train.evaluate_every_steps")
"""Of the keys that decide, those with other values of which a run may go on: it is extended."""


def data_identity(workspace: Path, manifest: Manifest, modalities: Iterable[str]) -> dict[str, Any]:
    """Return what a run reads, as config.yaml keeps it: the prepared data and the feature tables.

    Args:
        modalities: that the model looks up; tables that are not there are left out.
    """
    folders = {name: workspace / "features" / name for name in modalities}
    tables = {
        name: read_feature_manifest(folder)
        for name, folder in folders.items()
        if manifest.has_modality(name) and (folder / "manifest.json").is_file()
    }
    return {
        "name": manifest.name,
        "checksums": manifest.checksums,
        "features": {name: table.identity for name, table in tables.items()},
        # Own vectors have no encoder, and more of them another revision.
        "encoders": {
            name: table.revision for name, table in tables.items() if name not in manifest.vectors
        },
    }


def deciding(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that decide a run's result, flat, with their values.

    Args:
        stored: sections as config.yaml holds them, with every key of `model`, `tables`, `optim`, `train`
            and `run`, and `data` as `data_identity` makes it; runs of earlier versions have no features.
    """
    found = {f"{s}.{key}": value for s in ("model", "optim") for key, value in stored[s].items()}
    found["tables"] = {
        name: own for name, t in stored["tables"].items() if (own := _deciding_keys(t))
    }
    if any("ids" in own for own in found["tables"].values()):
        found["train.exchange_ids_every_steps"] = stored["train"]["exchange_ids_every_steps"]
    extendable = [key.removeprefix("train.") for key in EXTENDABLE]
    found |= {f"train.{key}": stored["train"][key] for key in (*_TRAIN_KEYS, *extendable)}
    found |= {key: stored["train"][key.removeprefix("train.")] or None for key in _LATER_KEYS}
    found["init"] = (stored.get("parent") or {}).get("checkpoint")
    found["run.seed"] = stored["run"]["seed"]
    found["data.name"] = stored["data"]["name"]
    found["data.identity"] = identity_of(stored["data"]["checksums"])
    if "features" in stored["data"]:
        found["data.features"] = stored["data"]["features"]
    return found


def _deciding_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a table that decide a run's result and are given; its placement does not."""
    own = ("width", "optimizer", "ids")
    keys = {name: table[name] for name in own if table.get(name) is not None}
    return keys | ({"precision": "fp16"} if table["precision"] == "fp16" else {})


def fingerprint(stored: Mapping[str, Any]) -> str:
    """Return a hash of the keys that decide: equal, the same result is asked for."""
    # A key that came later and is as if it were not there changes no result, and no hash of an earlier
    # version, so that what was finished before is not done anew.
    keys = {
        key: value
        for key, value in deciding(stored).items()
        if key not in _AS_BEFORE or value != _AS_BEFORE[key]
    }
    if keys["model.name"] != "umair_fps" and not keys.get("model.modality_components"):
        keys.pop("model.modality_components", None)  # as before it was a key of every ranker
    content = json.dumps(keys, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return a text for every key that decides and differs, by key; unknown ones do not differ."""
    before, after = deciding(stored), deciding(now)
    return {
        key: f"{key} was {before[key]!r}, is {value!r}"
        for key, value in after.items()
        if key in before and before[key] != value
    }


def scored_from(
    workspace: Path, checkpoint: Path, modalities: Iterable[str], settings: Any
) -> dict[str, Any]:
    """Return what an evaluation is made from, as its metrics.json keeps it.

    Args: as those of `made_from`.
    """
    return {**made_from(workspace, checkpoint, modalities, settings), "candidates": _CANDIDATES}


def made_from(
    workspace: Path, checkpoint: Path, modalities: Iterable[str], settings: Any
) -> dict[str, Any]:
    """Return what an evaluation or a bundle is made from.

    Args:
        checkpoint: folder of the weights.
        settings: the job's configuration.
    """
    manifest = read_manifest(workspace)
    data = data_identity(workspace, manifest, modalities)
    listing = checkpoint / "manifest.json"
    return {
        # Checkpoints of earlier versions have no manifest.
        "checkpoint": sha256_of(listing if listing.is_file() else checkpoint / "index.json")[:16],
        "data": manifest.identity,
        "features": data["features"],
        "settings": dataclasses.asdict(settings),
    }
