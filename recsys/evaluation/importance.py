"""Permutation importance: shuffle one input, score again, report the drop.

In: a trained ranker and the loader of a split. Out: predictions with each input shuffled, and the AUC
and log-loss lost (Breiman, Random Forests, 2001). An input is shuffled among the rows of a rank's batch;
the rest stays, and the model is not trained again. Correlated inputs mask each other. Rows stay on the
rank that scored them. Called by recsys/run/scoring.py and evaluate.py of this folder.

Ids and vectors are apart: a feature's ids reach its embeddings alone, so `item_id` shuffled leaves
the item its picture and its words. Shapes: B rows of a batch, N rows of a rank, D width.
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
from recsys.evaluation.predict import Predictions, ScoredBatches, scored
from recsys.evaluation.result import InputImportance
from recsys.metrics.bootstrap import interval
from recsys.metrics.formulas import auc_of, log_loss_of
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.row_sums import RowSums
from recsys.model.inputs import DenseInputs
from recsys.model.ranker import Ranker
from recsys.runtime.env import Env
from recsys.runtime.ranks import ALONE, Ranks
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
) -> tuple[Predictions | None, dict[tuple[str, str], NDArray[np.float64]]]:
    """Return predictions of the first rows of this rank as they are, and scores by shuffled input [N].

    Whole steps of about `num_rows` rows; the rows of a split lie in random order. A batch is read once
    and scored as it is and with each input shuffled, so one batch is held at a time. None, and nothing,
    where no rows are asked for.
    """
    num_steps = -(-num_rows // loader.global_batch_size)
    if not num_steps:
        return None, {}
    inputs = shuffled_inputs(ranker)
    shuffles = [Shuffle(ranker, kind, name, seed=seed + env.rank) for kind, name in inputs]
    as_it_is = ScoredBatches()
    scores: list[list[NDArray[np.float64]]] = [[] for _ in inputs]
    sharded.model.eval()
    for batch in itertools.islice(loader.batches(epoch=0), num_steps):
        on_device = sharded.id_maps.mapped(batch).to(env.device, non_blocking=True)
        as_it_is.score(sharded, on_device)
        for shuffle, of_input in zip(shuffles, scores, strict=True):
            shuffle.draw(batch)
            with shuffle.applied():
                of_input.append(scored(sharded, on_device).score)
    sharded.model.train()
    return as_it_is.whole(), {
        name: np.concatenate(parts) for name, parts in zip(inputs, scores, strict=True)
    }


def evaluate_importance(
    whole: Predictions,
    shuffled: Mapping[tuple[str, str], NDArray[np.float64]],
    units_N: NDArray[np.uint64],
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> list[InputImportance]:
    """Return what AUC and log-loss lose with each input shuffled, the largest loss first.

    Args:
        whole: rows of this rank.
        shuffled: scores of the same rows [N], by input; of the same inputs on every rank.
        units_N: keys of the bootstrap's units, of the rows of `whole`.
    """

    def measured(score_N: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
        """Return AUC, log-loss, and AUC [R] on the same resampled users for every input."""
        rows = labelled_scores(whole.label, score_N, units_N=units_N, ranks=ranks)
        sums = RowSums(rows)
        drawn = RowSums(
            rows,
            num_replicates=config.bootstrap.num_replicates,
            seed=config.seed,
            only_order=True,
        )
        return float(auc_of(sums)[0]), float(log_loss_of(sums)[0]), auc_of(drawn)

    base_auc, base_loss, base_R = measured(whole.score)
    lines = []
    for (kind, name), score_N in shuffled.items():
        auc, loss, auc_R = measured(score_N)
        lines.append(
            InputImportance(
                kind=kind,
                name=name,
                auc_lost=base_auc - auc,
                interval=interval(base_R - auc_R, level=config.bootstrap.level),
                log_loss_added=loss - base_loss,
            )
        )
    return sorted(lines, key=lambda line: -line.auc_lost)
