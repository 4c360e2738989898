"""The step: batch to device, forward, loss, backward, optimizer. Two pipelines, one contract.

`plain` takes one batch after the other. `sparse_dist` moves the next ones meanwhile; `auto` takes it
where there is something to move: batches to a GPU, or ids and vectors between ranks.

`progress(batches)` takes one training step and returns the Scores of its batch, or raises
StopIteration when the iterator is exhausted and every batch taken from it has been trained on.
`pause()` makes the model callable as usual (for evaluation) until the next `progress`.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch.profiler import record_function
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from recsys.batch import Batch
from recsys.errors import UserError
from recsys.model.ranker import Scores
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker

PIPELINES = ("auto", "sparse_dist", "plain")


class Pipeline(Protocol):
    """Pipeline protocol: the methods that the step loop calls."""

    def progress(self, batches: Iterator[Batch]) -> Scores:
        """Take one step."""
        ...

    def pause(self) -> None:
        """Hand the model back for a forward outside the pipeline."""
        ...

    def close(self) -> None:
        """Training is over."""
        ...


class PlainPipeline:
    """The step spelled out; the reference for the overlapped one."""

    def __init__(self, sharded: ShardedRanker, device: torch.device):
        """Keep the model, its optimizer and the device."""
        self.model = sharded.model
        self.optimizer = sharded.optimizer
        self.device = device

    def progress(self, batches: Iterator[Batch]) -> Scores:
        """Take one step; StopIteration at the end of `batches`."""
        # Named as TorchRec names the same parts, for recsys/train/profile.py.
        with record_function("## copy_batch_to_gpu ##"):
            batch = next(batches).to(self.device, non_blocking=True)
        with record_function("## zero_grad ##"):
            self.optimizer.zero_grad()
        with record_function("## forward ##"):
            loss, scores = self.model(batch)
        with record_function("## backward ##"):
            loss.backward()
        with record_function("## optimizer ##"):
            self.optimizer.step()
        return scores

    def pause(self) -> None:
        """Nothing to undo."""

    def close(self) -> None:
        """Nothing is open."""


class SparseDistPipeline:
    """TorchRec's pipeline: the ids of the next batches travel while this one is computed."""

    def __init__(self, sharded: ShardedRanker, device: torch.device):
        """Wrap the model; it is rewritten at the first step."""
        self.pipeline: TrainPipelineSparseDist[Batch, Scores] = TrainPipelineSparseDist(
            model=sharded.model,
            optimizer=sharded.optimizer,
            device=device,
            execute_all_batches=True,
        )

    def progress(self, batches: Iterator[Batch]) -> Scores:
        """Take one step; StopIteration once all batches taken from `batches` are trained on."""
        return self.pipeline.progress(batches)

    def pause(self) -> None:
        """Restore the model's own forward; the next `progress` rewrites it again."""
        self.pipeline.detach()

    def close(self) -> None:
        """Nothing is open."""


def build_pipeline(name: str, sharded: ShardedRanker, env: Env) -> Pipeline:
    """Return the pipeline called `name`.

    Raises:
        UserError: unknown name.
    """
    if name == "auto":
        # Of replicated tables nothing travels but gradients: two ranks on a CPU step in less time without
        # the other pipeline (LOG.md, 2026-11-28).
        travels = env.world_size > 1 and sharded.sends_rows
        overlaps = travels or env.device.type == "cuda"
        name = "sparse_dist" if overlaps else "plain"
    if name == "plain":
        return PlainPipeline(sharded, env.device)
    if name == "sparse_dist":
        return SparseDistPipeline(sharded, env.device)
    raise UserError(f"train.pipeline={name!r}: expected one of {', '.join(PIPELINES)}")
