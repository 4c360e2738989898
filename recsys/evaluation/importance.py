"""Permutation importance: shuffle one input, score again, report the drop.

In: a trained ranker and the loader of a split. Out: predictions with each input shuffled, and the AUC
and log-loss lost (Breiman, Random Forests, 2001). An input is shuffled among the rows of a rank's batch;
the rest stays, and the model is not trained again. Correlated inputs mask each other. Called by
recsys/run/scoring.py and evaluate.py of this folder.

Ids and vectors are apart: a feature's ids reach its embeddings alone, so `item_id` shuffled leaves
the item its picture and its words. Shapes: B rows, D width.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.batch import Batch
from recsys.data.loader import Loader
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.predict import Predictions, ScoredBatches, on_first_rank
from recsys.evaluation.result import InputImportance
from recsys.metrics.auc import auc
from recsys.metrics.bootstrap import interval
from recsys.metrics.entropy import log_loss
from recsys.metrics.formulas import bootstrap_auc
from recsys.model.inputs import DenseInputs
from recsys.model.ranker import Ranker
from recsys.runtime.env import Env
from recsys.runtime.ranks import all_ranks
from recsys.sharding.apply import ShardedRanker


def shuffled_inputs(ranker: Ranker) -> list[tuple[str, str]]:
    """Return what can be shuffled: (kind, name), kinds `feature`, `item vector`, `history vector`."""
    columns = (ranker.inputs.user_columns, ranker.inputs.item_columns)
    inputs = [("feature", name) for part in columns for name in part.feature_names]
    inputs += [("feature", name) for name in ranker.inputs.dense_names]
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

    def draw(self, batch: Batch) -> None:
        """Draw the order of the forward pass that follows: of the real rows, padding stays."""
        num_real = batch.num_real
        order_B = torch.arange(len(batch.labels_B))
        order_B[:num_real] = torch.randperm(num_real, generator=self.generator)
        self.order_B = order_B

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Shuffle in every forward pass within the block."""
        inputs = self.ranker.inputs
        if self.kind == "feature" and self.name in inputs.dense_names:
            dense = (inputs.user_dense, inputs.item_dense)
            side = next(c for c in dense if c is not None and self.name in c.feature_names)
            handle = side.register_forward_pre_hook(self._in_dense)
        elif self.kind == "feature":
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

    def _in_dense(self, _: Any, args: Any) -> tuple[torch.Tensor]:
        (dense_BK,) = args
        place = self.ranker.inputs.dense_names.index(self.name)
        shuffled_BK = dense_BK.clone()
        shuffled_BK[:, place] = dense_BK[self.order_B.to(dense_BK.device), place]
        return (shuffled_BK,)

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


@torch.no_grad()
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

    Whole steps of about `num_rows` rows; the rows of a split lie in random order. A batch is read once
    and scored as it is and with each input shuffled, so one batch is held at a time. None, and nothing,
    on ranks other than 0 and where no rows are asked for.
    """
    num_steps = -(-num_rows // loader.global_batch_size)
    if not num_steps:
        return None, {}
    inputs = shuffled_inputs(ranker)
    shuffles = [Shuffle(ranker, kind, name, seed=seed + env.rank) for kind, name in inputs]
    as_it_is, scored = ScoredBatches(), [ScoredBatches() for _ in inputs]
    sharded.model.eval()
    for batch in itertools.islice(loader.batches(epoch=0), num_steps):
        on_device = sharded.id_maps.mapped(batch).to(env.device, non_blocking=True)
        as_it_is.score(sharded, on_device)
        for shuffle, with_shuffle in zip(shuffles, scored, strict=True):
            shuffle.draw(batch)
            with shuffle.applied():
                with_shuffle.score(sharded, on_device)
    sharded.model.train()
    ranks = all_ranks()
    found = {name: on_first_rank(s.whole(), ranks) for name, s in zip(inputs, scored, strict=True)}
    whole = on_first_rank(as_it_is.whole(), ranks)
    return whole, {name: p for name, p in found.items() if p is not None}


def evaluate_importance(
    whole: Predictions,
    shuffled: Mapping[tuple[str, str], Predictions],
    units_N: NDArray[np.uint64],
    config: EvaluateConfig,
) -> list[InputImportance]:
    """Return what AUC and log-loss lose with each input shuffled, the largest loss first.

    Args:
        units_N: keys of the bootstrap's units, of the rows of `whole`.
    """
    order_N = np.argsort(whole.row_id, kind="stable")
    base, units_N = whole.take(order_N), units_N[order_N]

    def replicates(scores_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the AUC [R] on the same resampled users for every input."""
        return bootstrap_auc(
            base.label,
            scores_N,
            units_N,
            num_replicates=config.bootstrap.num_replicates,
            seed=config.seed,
        )

    base_R = replicates(base.score)
    base_auc, base_loss = auc(base.label, base.score), log_loss(base.label, base.score)
    lines = []
    for (kind, name), predictions in shuffled.items():
        score_N = predictions.take(np.argsort(predictions.row_id, kind="stable")).score
        lines.append(
            InputImportance(
                kind=kind,
                name=name,
                auc_lost=base_auc - auc(base.label, score_N),
                interval=interval(base_R - replicates(score_N), level=config.bootstrap.level),
                log_loss_added=log_loss(base.label, score_N) - base_loss,
            )
        )
    return sorted(lines, key=lambda line: -line.auc_lost)
