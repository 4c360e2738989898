"""Permutation importance: exactly one input is shuffled, among real rows, and by its own rows."""

import numpy as np
import pytest
import torch

from recsys.evaluation.importance import Shuffle, score_shuffled, shuffled_inputs
from recsys.evaluation.predict import predict
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from tests import tiny_world

SIZE = 16


@pytest.fixture(scope="module")
def world(one_process):
    config = read_run_config({
        "model": {
            "embedding_dim": 8,
            "tower_dims": [16, 8],
            "deep_dims": [8],
            "embedding_init": 1.0,
            "interest_modalities": ["semantic", "style", "text"],
        },
        "train": {"global_batch_size": SIZE},
        "plan": {"replicate_modality_bytes": 1 << 20},
    })
    ranker, _, sharded = plan_and_shard(
        config=config,
        manifest=tiny_world.manifest(),
        vectors=tiny_world.vectors(),
        env=one_process,
    )
    return ranker, sharded, one_process


def batch_of(ranker, size=SIZE, step=0):
    batch = tiny_world.batch(range(size), batch_features(ranker), step)
    batch.row_id_B += 100 * step
    return batch


class Fixed(Shuffle):
    """The next row's input for every row but the last three, which count as padding."""

    def draw(self, batch):
        num_real = len(batch.weights_B) - 3
        order = torch.arange(len(batch.weights_B))
        order[:num_real] = torch.roll(order[:num_real], -1)
        self.order_B = order


def scores(world, batches, shuffle=None):
    ranker, sharded, env = world
    if shuffle is None:
        return predict(sharded, batches, env).score

    def drawn():
        for batch in batches:
            shuffle.draw(batch)
            yield batch

    with shuffle.applied():
        return predict(sharded, drawn(), env).score


def test_every_input_of_the_ranker_is_listed(world):
    kinds = {}
    for kind, name in shuffled_inputs(world[0]):
        kinds.setdefault(kind, []).append(name)
    assert sorted(kinds["feature"]) == ["history", "history_recent", "item_id", "tags", "user_id"]
    assert kinds["item vector"] == ["semantic", "style", "text"]
    assert kinds["history vector"] == ["semantic", "style", "text"]


def test_a_shuffled_input_equals_a_batch_in_which_it_alone_is_exchanged(world):
    """Tags have no vectors: their ids can be exchanged in the batch itself."""
    ranker = world[0]
    whole = batch_of(ranker)
    order = torch.arange(SIZE)
    order[: SIZE - 3] = torch.roll(order[: SIZE - 3], -1)
    keys = whole.features.sparse.keys()
    lists = {key: whole.features.sparse[key].to_dense() for key in keys}
    lists["tags"] = [lists["tags"][i] for i in order]
    values = [v for key in keys for row in lists[key] for v in row.tolist()]
    lengths = [len(row) for key in keys for row in lists[key]]
    other = batch_of(ranker)
    other.features.sparse = type(other.features.sparse)(
        keys=keys, values=torch.tensor(values), lengths=torch.tensor(lengths)
    )
    expected = scores(world, [other])
    found = scores(world, [batch_of(ranker)], Fixed(ranker, "feature", "tags", seed=0))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, scores(world, [whole]))


def test_every_input_changes_scores_of_real_rows_and_of_no_padding(world):
    ranker = world[0]
    before = scores(world, [batch_of(ranker)])
    for kind, name in shuffled_inputs(ranker):
        after = scores(world, [batch_of(ranker)], Fixed(ranker, kind, name, seed=0))
        changed = np.abs(after - before) > 1e-7
        assert changed[:-3].any(), (kind, name)
        assert not changed[-3:].any(), (kind, name)
    np.testing.assert_array_equal(scores(world, [batch_of(ranker)]), before)


def test_ids_of_an_item_are_shuffled_without_its_vectors(world):
    """All inputs of the item shuffled at once, vectors included, are other scores than ids alone."""
    ranker = world[0]
    shuffles = [
        Fixed(ranker, kind, name, seed=0)
        for kind, name in [("feature", "item_id"), ("item vector", "semantic")]
    ]
    alone = scores(world, [batch_of(ranker)], shuffles[0])
    with shuffles[1].applied():
        shuffles[1].draw(batch_of(ranker))
        both = scores(world, [batch_of(ranker)], shuffles[0])
    assert not np.allclose(alone, both)


def test_orders_are_seeded_and_differ_between_batches(world):
    ranker = world[0]

    def orders(seed):
        shuffle = Shuffle(ranker, "feature", "tags", seed)
        found = []
        for step in range(2):
            shuffle.draw(batch_of(ranker, step=step))
            found.append(shuffle.order_B.tolist())
        return found

    assert orders(1) == orders(1) and orders(1) != orders(2)
    first, second = orders(1)
    assert first != second and sorted(first) == list(range(SIZE))


def test_scoring_shuffled_inputs_takes_whole_steps_and_leaves_no_hook(world):
    ranker, sharded, env = world

    class Batches:
        global_batch_size = SIZE
        passes = 0

        def batches(self, epoch):
            self.passes += 1
            return (batch_of(ranker, step=step) for step in range(4))

    loader = Batches()
    whole, found = score_shuffled(ranker, sharded, loader, env, num_rows=SIZE + 1, seed=0)
    assert loader.passes == 1, "the batches are read once for all inputs"
    assert len(whole.row_id) == 2 * SIZE
    assert list(found) == shuffled_inputs(ranker)
    two = [batch_of(ranker, step=step) for step in range(2)]
    for (kind, name), score_N in found.items():
        # As if this input alone had been shuffled in a pass of its own.
        alone = scores(world, two, Shuffle(ranker, kind, name, seed=0))
        np.testing.assert_array_equal(score_N, alone)
    again = predict(sharded, [batch_of(ranker, step=0), batch_of(ranker, step=1)], env)
    np.testing.assert_array_equal(again.score, whole.score)
    assert score_shuffled(ranker, sharded, Batches(), env, num_rows=0, seed=0) == (None, {})
