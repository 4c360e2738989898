"""Rankers of the tiny world with their tables held whole in this process: no sharding, no group."""

import torch

from recsys.model.build import batch_features, build_ranker
from recsys.run.config import read_run_config
from tests import tiny_world

SMALL = {
    "embedding_dim": 8,
    "tower_dims": [16, 8],
    "deep_dims": [16],
    "cross_rank": 4,
    "cross_width": 4,
    "dropout": 0.0,
    "interest_modalities": ["text", "style"],
}


def ranker_of(name, seed=0, **more):
    """A ranker of every modality, tables drawn from the seed."""
    vectors = tiny_world.vectors()
    ranker = build_ranker(
        manifest=tiny_world.manifest(),
        config=read_run_config({"model": {"name": name, **SMALL, **more}}).model,
        modality_dims={modality: table.dim for modality, table in vectors.items()},
        seed=seed,
    )
    ranker.inputs.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for bag in ranker.inputs.embeddings.embedding_bags.values():
        bag.weight.data.uniform_(-0.5, 0.5, generator=generator)
    # The CPU multiplies no fp16 in a lookup.
    tables = ranker.inputs.modality.tables.float()
    for name, bag in tables.embedding_bags.items():
        values = torch.from_numpy(vectors[name.removeprefix("modality_")].values)
        bag.weight.data.zero_()
        bag.weight.data[:, : values.shape[1]] = values
        bag.weight.data[:, values.shape[1]] = (values != 0).any(dim=1)
    return ranker


def batch_of(ranker, rows, num_padding=0, step=0):
    """Rows of the tiny world for a ranker, with rows of padding behind them."""
    features = batch_features(ranker)
    batch = tiny_world.batch(rows, features, step)
    return tiny_world.padded(batch, num_padding) if num_padding else batch
