"""Encoder folder: the stamp of an encoder, by which an unchanged one is loaded instead of made anew.

    encoders/<name>/config.json     the stamp: settings, content of the starting weights, seed, data

A stamp holds the content of the weights an encoder starts from, not only their path: a file that has
moved is the same file, and a finished encoder is loaded without it. Called by embedding/making.py.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding.starting_weights import NAMES, weights_path
from recsys.files import EMBED_AGAIN, put_back, read_json, sha256_of
from recsys.schema import Manifest

_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Everything an encoder depends on."""

    settings: Any
    """ImageConfig or TextConfig."""
    path_key: str
    """The setting that names the starting weights: a file, a folder, or a name such as `none`."""
    weights: str | None
    """Fingerprint of that file or folder; None where it is a name, or nothing is there."""
    trained_on: dict[str, str | None]
    """Checksums of the prepared files that training reads, by name."""
    seed: int
    """Seed of training and samples."""
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Other facts that a training which was cut off depends on."""

    @property
    def path(self) -> str:
        """The starting weights as the settings name them."""
        return str(getattr(self.settings, self.path_key))

    def content(self) -> dict[str, Any]:
        """Return what config.json holds, as it is read back."""
        content = {
            "settings": dataclasses.asdict(self.settings),
            "weights": self.weights or self.path,
            "trained_on": self.trained_on,
            "seed": self.seed,
            **self.more,
        }
        return json.loads(json.dumps(content))

    def fits(self, made: Mapping[str, Any]) -> bool:
        """Return whether an encoder of the stamp `made` is the one asked for.

        The data it was trained on does not count: when items are added, vectors of the old ones stay
        comparable only while the encoder stays. Settings that a stamp of an earlier version lacks
        have their defaults.
        """
        asked = self.content()
        defaults = json.loads(json.dumps(dataclasses.asdict(type(self.settings)())))
        settings = defaults | made.get("settings", {})
        same_path = settings.pop(self.path_key) == asked["settings"].pop(self.path_key)
        # Without content on both sides (the file is gone, a hub name, an old stamp) the path decides.
        known = self.weights is not None and "weights" in made
        same_weights = made.get("weights") == self.weights if known else same_path
        return same_weights and settings == asked["settings"] and made.get("seed") == self.seed

    def continues(self, made: Mapping[str, Any]) -> bool:
        """Return whether a training of the stamp `made`, which was cut off, goes on under this one."""
        asked = self.content()
        others = (set(asked) | set(made)) - {"settings", "weights", "seed"}
        return self.fits(made) and all(made.get(key) == asked.get(key) for key in others)


def stamp_of(settings: Any, path_key: str, manifest: Manifest, seed: int) -> Stamp:
    """Return the stamp of an encoder that is asked for; reads the starting weights, if they are there.

    Args:
        settings: ImageConfig or TextConfig.
        path_key: their setting that names the starting weights.
    """
    given, is_image = str(getattr(settings, path_key)), path_key == "weights"
    content = None
    if given not in NAMES:
        path = weights_path(given, f"encoder.{'image' if is_image else 'text'}.{path_key}")
        is_there = path is not None and (path.is_file() if is_image else path.is_dir())
        content = fingerprint(path) if path and is_there else None
    return Stamp(
        settings=settings,
        path_key=path_key,
        weights=content,
        trained_on={n: manifest.checksums.get(n) for n in ("items.parquet", "pairs.parquet")},
        seed=seed,
    )


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """Return the stamp of the encoder in `folder`; None where there is none.

    Raises:
        DamagedFileError: it is broken.
    """
    put_back(folder)
    file = folder / _FILE
    return read_json(file, f"delete {folder} and {EMBED_AGAIN}") if file.is_file() else None


def fingerprint(*parts: Path) -> str:
    """Return a short hash over the content of files, and of folders with the names within."""
    digest = hashlib.sha256()
    for part in parts:
        files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
        for file in files:
            digest.update(f"{os.path.relpath(file, part)}:{sha256_of(file)};".encode())
    return digest.hexdigest()[:16]
