"""From a manifest and a RankerConfig to a Ranker whose tables are on the meta device.

Called by the jobs in launch/ that need a model; sharding gives the tables their storage.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from recsys.errors import UserError
from recsys.model.baselines.autoint import AutoInt
from recsys.model.baselines.concat import Concat
from recsys.model.baselines.dcn import Dcn
from recsys.model.baselines.dcn_v2 import DcnV2
from recsys.model.baselines.deepfm import DeepFM
from recsys.model.baselines.fibinet import FiBiNet
from recsys.model.baselines.finalmlp import FinalMlp, TwoStreams
from recsys.model.baselines.fm import FactorizationMachine
from recsys.model.baselines.inputs import Concatenation, Fields, FirstOrder
from recsys.model.baselines.lr import LogisticRegression
from recsys.model.baselines.masknet import MaskNet
from recsys.model.baselines.xdeepfm import XDeepFM
from recsys.model.cross import build_cross
from recsys.model.inputs import RankerInputs
from recsys.model.mlp import Tower
from recsys.model.ranker import Ranker, RankerConfig, Scorer
from recsys.model.umair_fps import UmairFps
from recsys.schema import FeatureSpec, Manifest


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
        UserError: unknown ranker, feature, fusion or cross; a width FBGEMM cannot hold; a setting
            that the ranker cannot have.
    """
    _check_sizes(config)
    if config.name not in RANKERS:
        raise UserError(f"model.name={config.name!r}: expected one of {', '.join(RANKERS)}")
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
        similarity_tiers=config.similarity_tiers if config.name == "umair_fps" else 0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = RANKERS[config.name](config, inputs)
    return Ranker(Scorer(inputs=inputs, dense=dense, dense_precision=config.dense_precision))


def select_features(manifest: Manifest, config: RankerConfig) -> list[FeatureSpec]:
    """Return the features the ranker reads, in manifest order.

    Raises:
        UserError: the config names a feature that the manifest does not have.
    """
    known = [f.name for f in manifest.features]
    named = list(config.features or []) + list(config.exclude_features)
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise UserError(
            f"model.features / model.exclude_features name {', '.join(unknown)}; the data set "
            f"{manifest.name!r} has {', '.join(known)}"
        )
    wanted = set(known if config.features is None else config.features)
    wanted -= set(config.exclude_features)
    if not wanted:
        raise UserError("model.features leaves no feature; name at least one")
    return [f for f in manifest.features if f.name in wanted]


def batch_features(ranker: Ranker) -> list[str]:
    """Return the sparse keys a batch must carry for this ranker, each once."""
    names: list[str] = []
    for columns in (ranker.inputs.user_columns, ranker.inputs.item_columns):
        names += columns.feature_names
    if ranker.inputs.modality is not None:
        names += [ranker.inputs.modality.item_feature, *ranker.inputs.modality.history_features]
        if ranker.inputs.modality.sequence_feature is not None:
            names.append(ranker.inputs.modality.sequence_feature)
    return list(dict.fromkeys(names))


def _umair_fps(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    return UmairFps(
        user_dim=inputs.user_dim,
        item_dim=inputs.item_dim,
        modality_dims=inputs.modality_dims,
        interests=_interests(inputs),
        shared_projection=config.shared_projection,
        match=config.match,
        second_order_dim=inputs.vector_dim if config.second_order else 0,
        tower_dims=config.tower_dims,
        umcm=config.umcm,
        cross=config.cross,
        cross_layers=config.cross_layers,
        cross_rank=config.cross_rank,
        cross_experts=config.cross_experts,
        deep_dims=config.deep_dims,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        projection_dropout=config.projection_dropout,
        umcm_dropout=config.umcm_dropout,
        user_activation=config.user_activation,
        similarity_dim=inputs.similarity_dim,
    )


def _lr(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    if not config.first_order:
        raise UserError(
            "model.first_order=false: model.name=lr is made of first-order weights; use true"
        )
    return LogisticRegression(first_order=_first_order(inputs))


def _fm(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    return FactorizationMachine(fields=_fields(inputs), first_order=_first_order(inputs))


def _deepfm(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    fields = _fields(inputs)
    return DeepFM(
        fields=fields, first_order=_first_order(inputs), deep=_deep(config, fields.out_dim)
    )


def _dcn(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    x0 = _concatenation(config, inputs)
    return Dcn(x0=x0, cross_layers=config.cross_layers, deep=_deep(config, x0.out_dim))


def _dcn_v2(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    x0 = _concatenation(config, inputs)
    cross = build_cross(
        form=config.cross,
        in_dim=x0.out_dim,
        num_layers=config.cross_layers,
        rank=config.cross_rank,
        num_experts=config.cross_experts,
    )
    stacked = config.name == "dcn_v2_stacked"
    return DcnV2(x0=x0, cross=cross, deep=_deep(config, x0.out_dim), stacked=stacked)


def _xdeepfm(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    fields = _fields(inputs)
    return XDeepFM(
        fields=fields,
        first_order=_first_order(inputs),
        num_layers=config.cross_layers,
        num_maps=config.cross_width,
        deep=_deep(config, fields.out_dim),
    )


def _fibinet(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    return FiBiNet(
        fields=_fields(inputs),
        first_order=_first_order(inputs),
        deep_dims=config.deep_dims,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )


def _autoint(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    fields = _fields(inputs)
    return AutoInt(
        fields=fields,
        first_order=_first_order(inputs),
        num_layers=config.cross_layers,
        num_heads=config.cross_heads,
        head_dim=config.cross_width,
        deep=_deep(config, fields.out_dim),
    )


def _masknet(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    return MaskNet(
        fields=_fields(inputs),
        num_blocks=config.cross_layers,
        block_dim=config.cross_width,
        deep_dims=config.deep_dims,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )


def _finalmlp(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    x0 = _concatenation(config, inputs)
    streams = TwoStreams(
        in_dim=x0.out_dim,
        first_context_dim=x0.user_dim,
        second_context_dim=x0.item_dim,
        first_dims=config.deep_dims,
        second_dims=config.second_deep_dims or config.deep_dims,
        gate_dim=config.cross_width,
        num_heads=config.cross_heads,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )
    return FinalMlp(x0=x0, streams=streams)


def _concat(config: RankerConfig, inputs: RankerInputs) -> nn.Module:
    x0 = _concatenation(config, inputs)
    return Concat(x0=x0, deep=_deep(config, x0.out_dim))


RANKERS: dict[str, Callable[[RankerConfig, RankerInputs], nn.Module]] = {
    "umair_fps": _umair_fps,
    "lr": _lr,
    "fm": _fm,
    "deepfm": _deepfm,
    "dcn": _dcn,
    "dcn_v2": _dcn_v2,
    "dcn_v2_stacked": _dcn_v2,
    "xdeepfm": _xdeepfm,
    "fibinet": _fibinet,
    "autoint": _autoint,
    "masknet": _masknet,
    "finalmlp": _finalmlp,
    "concat": _concat,
}
"""Builder of the dense part by model.name."""


def _interests(inputs: RankerInputs) -> list[str]:
    return [modality for modality, _ in inputs.interests]


def _concatenation(config: RankerConfig, inputs: RankerInputs) -> Concatenation:
    return Concatenation(
        user_dim=inputs.user_dim,
        item_dim=inputs.item_dim,
        modality_dims=inputs.modality_dims,
        interests=_interests(inputs),
        shared_projection=config.shared_projection,
        projection_dim=config.tower_dims[-1],
    )


def _fields(inputs: RankerInputs) -> Fields:
    return Fields(
        num_features=inputs.num_features,
        field_dim=inputs.field_dim,
        modality_dims=inputs.modality_dims,
        interests=_interests(inputs),
    )


def _first_order(inputs: RankerInputs) -> FirstOrder:
    return FirstOrder(modality_dims=inputs.modality_dims, interests=_interests(inputs))


def _deep(config: RankerConfig, in_dim: int) -> Tower:
    return Tower(
        in_dim=in_dim,
        hidden_dims=config.deep_dims,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )


def _check_sizes(config: RankerConfig) -> None:
    """Raise UserError for sizes that no layer can have, all at once.

    Raises:
        UserError: lists every offending key.
    """
    problems = [
        f"model.{key}={getattr(config, key)}: expected 1 or more"
        for key in ("embedding_dim", "cross_layers", "cross_heads", "cross_width", "cross_rank")
        if getattr(config, key) < 1
    ]
    if config.cross_experts < 1:
        problems.append(f"model.cross_experts={config.cross_experts}: expected 1 or more")
    for key in ("tower_dims", "deep_dims", "second_deep_dims"):
        widths = getattr(config, key)
        if any(width < 1 for width in widths) or not (widths or key == "second_deep_dims"):
            problems.append(
                f"model.{key}={widths}: expected widths of at least one layer, 1 or more"
            )
    if config.similarity_tiers < 0:
        problems.append(f"model.similarity_tiers={config.similarity_tiers}: expected 0 or more")
    for key in ("dropout", "projection_dropout", "umcm_dropout"):
        share = getattr(config, key)
        if share is not None and not 0 <= share < 1:
            problems.append(f"model.{key}={share}: expected 0 <= share < 1")
    if not 0 <= config.embedding_init < math.inf:
        problems.append(f"model.embedding_init={config.embedding_init}: expected 0 or more")
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
