"""Permutation importance: what a model loses when one of its inputs belongs to somebody else.

(Breiman, Random Forests, 2001.) An input is dealt out anew among the rows of a rank's batch, the rest
stays, the model is not trained again: what falls is what the model took from this input beside the
others. Two inputs that say the same hide each other. Called by launch/evaluate.py.

Ids and vectors are apart: a feature's ids reach its embeddings alone, so `item_id` shuffled leaves
the item its picture and its words. Shapes: B rows, D width.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.batch import Batch
from recsys.data.loader import Loader
from recsys.evaluation.predict import Predictions, predict
from recsys.model.inputs import DenseInputs
from recsys.model.ranker import Ranker
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker


def shuffled_inputs(ranker: Ranker) -> list[tuple[str, str]]:
    """Return what can be shuffled: (kind, name), kinds `feature`, `item vector`, `history vector`."""
    columns = (ranker.inputs.user_columns, ranker.inputs.item_columns)
    inputs = [("feature", name) for part in columns for name in part.feature_names]
    inputs += [("item vector", name) for name in ranker.inputs.modality_dims]
    pooled = dict.fromkeys(modality for modality, _ in ranker.inputs.interests)
    return inputs + [("history vector", name) for name in pooled]


class Shuffle:
    """Deals one input of a ranker out anew; every rank among the real rows of its own batches."""

    def __init__(self, ranker: Ranker, kind: str, name: str, seed: int):
        """Args: kind, name: of shuffled_inputs; seed: of the order, which is its own every batch."""
        self.ranker = ranker
        self.kind = kind
        self.name = name
        self.generator = torch.Generator().manual_seed(seed)
        self.order_B = torch.zeros(0, dtype=torch.int64)

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; each with a new order for the forward pass that follows."""
        for batch in batches:
            num_real = int(batch.weights_B.sum())
            order_B = torch.arange(len(batch.weights_B))
            order_B[:num_real] = torch.randperm(num_real, generator=self.generator)
            self.order_B = order_B
            yield batch

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Shuffle in every forward pass within the block."""
        inputs = self.ranker.inputs
        if self.kind == "feature":
            is_user = self.name in inputs.user_columns.feature_names
            columns = inputs.user_columns if is_user else inputs.item_columns
            handle = columns.register_forward_pre_hook(self._in_columns)
        else:
            handle = self.ranker.dense.register_forward_pre_hook(self._in_vectors)
        try:
            yield
        finally:
            handle.remove()

    def _in_columns(self, module: Any, args: Any) -> tuple[KeyedTensor, KeyedJaggedTensor]:
        embeddings, sparse = args
        keys, widths = embeddings.keys(), embeddings.length_per_key()
        values_BD = embeddings.values().clone()
        start = sum(widths[: keys.index(self.name)])
        stop = start + widths[keys.index(self.name)]
        order_B = self.order_B.to(values_BD.device)
        part_BD = values_BD[order_B, start:stop]
        if module.is_list[module.feature_names.index(self.name)]:
            # Sums, which the columns divide by the row's own number of ids.
            lengths_FB = sparse.lengths().reshape(len(sparse.keys()), -1)
            lengths_B = lengths_FB[sparse.keys().index(self.name)].clamp_min(1)
            part_BD = part_BD * (lengths_B / lengths_B[order_B])[:, None]
        values_BD[:, start:stop] = part_BD
        return KeyedTensor(keys=keys, length_per_key=widths, values=values_BD), sparse

    def _in_vectors(self, _: Any, args: Any) -> tuple[DenseInputs]:
        (inputs,) = args
        order_B = self.order_B.to(inputs.first_order_B.device)
        if self.kind == "item vector":
            vector_BE, present_B = inputs.modalities[self.name]
            inputs.modalities = {
                **inputs.modalities,
                self.name: (vector_BE[order_B], present_B[order_B]),
            }
        else:
            inputs.interests = [
                (v[order_B], p[order_B]) if modality == self.name else (v, p)
                for (modality, _), (v, p) in zip(
                    self.ranker.inputs.interests, inputs.interests, strict=True
                )
            ]
        return (inputs,)


def score_shuffled(
    ranker: Ranker,
    sharded: ShardedRanker,
    loader: Loader,
    env: Env,
    *,
    num_rows: int,
    seed: int,
) -> tuple[Predictions | None, dict[tuple[str, str], Predictions]]:
    """Return the predictions of the first rows as they are, and by input with it shuffled.

    Whole steps of about `num_rows` rows; the rows of a split lie in random order. None, and nothing,
    on ranks other than 0 and where no rows are asked for.
    """
    num_steps = -(-num_rows // loader.global_batch_size)

    def first() -> Iterator[Batch]:
        return itertools.islice(loader.batches(epoch=0), num_steps)

    if not num_steps:
        return None, {}
    whole = predict(sharded, first(), env)
    found = {}
    for kind, name in shuffled_inputs(ranker):
        shuffle = Shuffle(ranker, kind, name, seed=seed + env.rank)
        with shuffle.applied():
            predictions = predict(sharded, shuffle.batches(first()), env)
        if predictions is not None:
            found[kind, name] = predictions
    return whole, found
