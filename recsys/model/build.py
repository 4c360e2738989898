"""From a manifest and a RankerConfig to a Ranker whose tables are on the meta device.

Called by the jobs in launch/ that need a model; sharding gives the tables their storage.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from recsys.model.baselines.dcn_v2 import DcnV2
from recsys.model.ranker import (
    Ranker,
    RankerConfig,
    RankerInputs,
    UmairFps,
    select_features,
)
from recsys.schema import Manifest

RANKERS = ("umair_fps", "dcn_v2")


def build_ranker(
    *, manifest: Manifest, config: RankerConfig, modality_dims: Mapping[str, int], seed: int
) -> Ranker:
    """Return the ranker that `config` describes.

    Args:
        manifest: tables and features of the prepared data.
        config: the architecture.
        modality_dims: vector width of every modality that the workspace has; those the config does
            not name are left out, so that any of images and texts may be absent.
        seed: of the dense weights; tables are initialised when they are sharded.

    Raises:
        ValueError: unknown ranker, feature, fusion or cross; a width FBGEMM cannot hold.
    """
    features = select_features(manifest, config)
    dims = {name: modality_dims[name] for name in config.modalities if name in modality_dims}
    inputs = RankerInputs(
        tables=manifest.tables,
        features=features,
        num_item_rows=manifest.num_item_rows,
        modality_dims=dims,
        interest_modalities=config.interest_modalities,
        history_features=[f.name for f in manifest.features if f.source == "history"],
        embedding_dim=config.embedding_dim,
        table_dims=config.table_dims,
        half_tables=config.half_tables,
        first_order=config.first_order,
    )
    shared: dict[str, Any] = {
        "user_dim": inputs.user_dim,
        "item_dim": inputs.item_dim,
        "modality_dims": dims,
        "interests": [modality for modality, _ in inputs.interests],
        "shared_projection": config.shared_projection,
        "tower_dims": config.tower_dims,
        "cross": config.cross,
        "cross_layers": config.cross_layers,
        "cross_rank": config.cross_rank,
        "cross_experts": config.cross_experts,
        "deep_dims": config.deep_dims,
        "dropout": config.dropout,
        "batch_norm": config.batch_norm,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense: nn.Module
        if config.name == "umair_fps":
            dense = UmairFps(
                **shared,
                umcm=config.umcm,
                match=config.match,
                second_order_dim=inputs.vector_dim if config.second_order else 0,
            )
        elif config.name == "dcn_v2":
            dense = DcnV2(**shared)
        else:
            raise ValueError(f"model.name={config.name!r}: expected one of {', '.join(RANKERS)}")
    return Ranker(inputs=inputs, dense=dense, dense_precision=config.dense_precision)


def batch_features(ranker: Ranker) -> list[str]:
    """Return the sparse keys a batch must carry for this ranker, each once."""
    names: list[str] = []
    for columns in (ranker.inputs.user_columns, ranker.inputs.item_columns):
        names += columns.feature_names
    if ranker.inputs.modality is not None:
        names += [ranker.inputs.modality.item_feature, *ranker.inputs.modality.history_features]
    return list(dict.fromkeys(names))
