"""model=paper and experiment=paper are what the authors' released code builds and how it trains it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from launch import train
from recsys.config import plain
from recsys.job import typed_arguments
from recsys.model.build import build_ranker
from recsys.run.assembly import build_plannable, plan_and_shard
from recsys.run.config import SECTIONS, read_run_config
from tests import tiny_world

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DIMS = {"semantic": 6, "style": 4, "text": 5}


def settings(*overrides):
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        cfg = compose("train", overrides=typed_arguments(overrides, train.KEYS))
    return read_run_config({name: plain(cfg.get(name)) for name in SECTIONS})


def dense_of(config, manifest=None, dims=None):
    manifest = manifest or tiny_world.manifest()
    dims = DIMS if dims is None else dims
    return build_ranker(manifest=manifest, config=config.model, modality_dims=dims, seed=0).dense


@pytest.fixture(scope="module")
def paper():
    return settings("experiment=paper")


def kinds(tower):
    return [type(layer).__name__ for layer in tower.layers]


def test_every_layer_of_a_tower_is_dense_batch_norm_relu_dropout(paper):
    dense = dense_of(paper)
    layer = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds(dense.user_tower) == kinds(dense.item_tower) == 2 * layer
    assert kinds(dense.deep) == 3 * layer
    widths = [m.out_features for m in dense.user_tower.layers if isinstance(m, nn.Linear)]
    assert widths == [128, 64]
    assert [m.out_features for m in dense.deep.layers if isinstance(m, nn.Linear)] == [64, 32, 16]
    dropouts = {m.p for tower in (dense.user_tower, dense.deep) for m in tower.layers[3::4]}
    assert dropouts == {0.5}


def test_fusion_is_attention_without_scale_with_dropped_weights(paper):
    dense = dense_of(paper)
    assert paper.model.umcm == "attention" and dense.umcm.dropout.p == 0.5
    # Projected vectors go in as they are, and no match of ours stands beside the fused one.
    assert dense.dropout.p == 0.0 and dense.match is None and dense.second_order is None
    # Interests reach the user tower unprojected: 2 text vectors beside the ids.
    assert dense.projections.interest_dim == 2 * DIMS["text"]
    user, modalities = torch.randn(3, 64), torch.randn(3, 4, 64)
    _, weights = dense.umcm.eval()(user, modalities, torch.ones(3, 4))
    scores = torch.stack([(user[b] * modalities[b]).sum(dim=1) for b in range(3)])
    torch.testing.assert_close(weights, torch.softmax(scores, dim=1))


def test_it_is_trained_for_one_epoch_by_adam(paper):
    assert paper.model.embedding_dim == 8
    assert (paper.optim.dense_name, paper.optim.dense_learning_rate) == ("adam", 1e-3)
    assert (paper.optim.table.name, paper.optim.table.learning_rate) == ("adam", 1e-3)
    assert (paper.optim.dense_weight_decay, paper.optim.table.l2) == (0.0, 0.0)
    assert (paper.optim.warmup_steps, paper.optim.decay) == (0, "constant")
    assert (paper.train.epochs, paper.train.global_batch_size, paper.train.patience) == (1, 128, 0)


@pytest.mark.parametrize("umcm", ["attention", "senet"])
def test_penalties_lie_on_matrices_of_projections_senet_and_final_mlp(paper, umcm, one_process):
    config = dataclasses.replace(paper, model=dataclasses.replace(paper.model, umcm=umcm))
    _, _, sharded = plan_and_shard(
        config=config,
        manifest=tiny_world.manifest(),
        vectors=tiny_world.vectors(),
        env=one_process,
    )
    names = {id(p): name for name, p in sharded.model.named_parameters()}
    penalised = {
        names[id(p)].removeprefix("scorer.dense."): group["weight_decay"]
        for group in sharded.dense_optimizer.param_groups
        for p in group["params"]
        if group["weight_decay"]
    }
    expected = {f"projections.linear.{name}.weight": 2e-4 for name in DIMS}
    expected |= {f"deep.layers.{index}.weight": 2e-2 for index in (0, 4, 8)}
    if umcm == "senet":
        expected |= {"umcm.squeeze.weight": 2e-3, "umcm.excite.weight": 2e-3}
    assert penalised == expected


@pytest.mark.parametrize(
    ("data", "tuned", "dims"),
    [
        ("demo", "umair_fps", DIMS),
        ("movielens", "movielens", {"semantic": 6, "style": 4, "text": 5}),
        ("anime", "anime", {"text": 5}),
        ("ctr", "umair_fps", {}),
    ],
)
def test_the_ablation_takes_it_whatever_the_data_has(data, tuned, dims, paper):
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        suite = compose("compare", overrides=["suite=ablation"]).suite
    variant = list(suite.variants.paper.overrides)
    source = [] if data == "demo" else ["data.source=X"]
    config = settings(f"data={data}", *source, f"experiment={tuned}", *variant)
    assert (config.model, config.optim, config.train) == (paper.model, paper.optim, paper.train)
    manifest = tiny_world.manifest()
    if not dims:  # a click log: no histories either
        kept = tuple(f for f in manifest.features if f.source != "history")
        manifest = dataclasses.replace(manifest, features=kept, history=None)
    ranker, _ = build_plannable(
        config=config, manifest=manifest, modality_dims=dims, device_type="cpu"
    )
    assert ranker.modality_names == ["ids", *dims]


def test_a_penalty_on_no_part_or_beside_adamw_is_refused():
    with pytest.raises(ValueError, match=r"optim.dense_l2 with optim.dense_name=adamw"):
        settings("+optim.dense_l2.deep=0.1")
    config = settings("optim.dense_name=adam", "+optim.dense_l2.head=0.1")
    with pytest.raises(ValueError, match="names head; the model has the parts projections, user_t"):
        build_plannable(
            config=config, manifest=tiny_world.manifest(), modality_dims=DIMS, device_type="cpu"
        )
