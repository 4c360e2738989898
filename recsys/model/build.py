"""From a manifest and a ranker's settings to a Ranker whose tables are on the meta device.

RANKERS lists every ranker by name: UMAIR-FPS and the baselines, which are found by their files in
baselines/. Called by the jobs in launch/ that need a model; sharding gives the tables their storage.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from recsys.errors import UserError
from recsys.model import baselines
from recsys.model.config import RankerConfig
from recsys.model.inputs import InputSizes, RankerInputs
from recsys.model.ranker import Ranker, Scorer
from recsys.model.tables import TableForm
from recsys.model.umair_fps import UmairFps, UmairFpsConfig
from recsys.schema import DenseSpec, FeatureSpec, Manifest

Dense = Callable[[Any, InputSizes], nn.Module]


def _baselines() -> dict[str, tuple[type[RankerConfig], Dense]]:
    """Return settings and dense half of every baseline: what each file of baselines/ has in `RANKERS`."""
    found: dict[str, tuple[type[RankerConfig], Dense]] = {}
    for file in pkgutil.iter_modules(baselines.__path__):
        if file.name == "inputs":  # what the baselines share
            continue
        module = importlib.import_module(f"{baselines.__name__}.{file.name}")
        for config, dense in module.RANKERS:
            name = config().name
            assert name not in found, f"{module.__name__}: another baseline is called {name!r}"
            found[name] = (config, dense)
    return found


BASELINES = _baselines()
"""Settings and dense half of a baseline by model.name, in the order of the files."""
RANKERS: dict[str, tuple[type[RankerConfig], Dense]] = {
    "umair_fps": (UmairFpsConfig, UmairFps),
    **BASELINES,
}
"""Settings and dense half of a ranker by model.name; the dense half is built from settings and widths."""
RankerConfig.KINDS = {name: config for name, (config, _) in RANKERS.items()}


def build_ranker(
    *,
    manifest: Manifest,
    config: RankerConfig,
    modality_dims: Mapping[str, int],
    seed: int,
    forms: Mapping[str, TableForm] = MappingProxyType({}),
) -> Ranker:
    """Return the ranker that `config` describes.

    Args:
        manifest: tables and features of the prepared data.
        config: of the class that RANKERS has for its name, without problems.
        modality_dims: vector width of every modality that the workspace has; those the config does
            not name are left out, so that any of images and texts may be absent.
        seed: of the dense weights; tables are initialised when they are sharded.
        forms: width and precision of single tables, by name; others are of `embedding_dim` and fp32.

    Raises:
        UserError: unknown feature; a width FBGEMM cannot hold; tables of different widths for a ranker
            that multiplies them with each other.
    """
    tiers, compared = 0, ["history"]
    if isinstance(config, UmairFpsConfig):
        tiers, compared = config.similarity_tiers, config.similarity_histories
        _check_histories(manifest, compared)
    inputs = RankerInputs(
        config=config,
        manifest=manifest,
        features=select_features(manifest, config),
        dense=select_dense(manifest, config),
        forms=forms,
        modality_dims={n: modality_dims[n] for n in config.modalities if n in modality_dims},
        similarity_tiers=tiers,
        similarity_histories=compared,
    )
    _, dense_class = RANKERS[config.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = dense_class(config, inputs.sizes)
    return Ranker(Scorer(inputs=inputs, dense=dense, dense_precision=config.dense_precision))


def _check_histories(manifest: Manifest, compared: Sequence[str]) -> None:
    """Refuse histories that there are none of.

    Raises:
        UserError: names them, and the key that has them prepared.
    """
    known = [f.name for f in manifest.features if f.source == "history"]
    unknown = sorted(set(compared) - {"history", *known})
    if unknown:
        raise UserError(
            f"model.similarity_histories names {', '.join(unknown)}; the data set {manifest.name!r} has "
            f"{', '.join(known) or 'no history'}. history_negative needs data.history.negative_length "
            f"of 1 or more: run launch/prepare.py again with it"
        )


def select_features(manifest: Manifest, config: RankerConfig) -> list[FeatureSpec]:
    """Return the features of ids that the ranker reads, in manifest order.

    Raises:
        UserError: the config names a feature that the manifest does not have, or leaves none.
    """
    known = [f.name for f in manifest.all_features]
    named = list(config.features or []) + list(config.exclude_features)
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise UserError(
            f"model.features / model.exclude_features name {', '.join(unknown)}; the data set "
            f"{manifest.name!r} has {', '.join(known)}"
        )
    found = [f for f in manifest.features if _is_read(f.name, config)]
    if not found:
        raise UserError("model.features leaves no feature of ids; name at least one")
    return found


def select_dense(manifest: Manifest, config: RankerConfig) -> list[DenseSpec]:
    """Return the dense features that the ranker reads, in manifest order."""
    return [f for f in manifest.dense if _is_read(f.name, config)]


def _is_read(name: str, config: RankerConfig) -> bool:
    is_named = config.features is None or name in config.features
    return is_named and name not in config.exclude_features


def batch_features(ranker: Ranker) -> list[str]:
    """Return the features that a batch must carry for this ranker, each once: ids, then numbers."""
    names: list[str] = []
    for columns in (ranker.inputs.user_columns, ranker.inputs.item_columns):
        names += columns.feature_names
    if ranker.inputs.modality is not None:
        names += [ranker.inputs.modality.item_feature, *ranker.inputs.modality.history_features]
        names += ranker.inputs.modality.sequence_features
    return list(dict.fromkeys(names)) + ranker.inputs.dense_names
