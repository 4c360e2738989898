"""Fine-tuning: Sentence-Transformers' trainer on text pairs, over any number of ranks, restartable.

Input: a model, training pairs, retrieval tasks of unseen entities. Output: the model, trained in place,
and its evaluations. Called by embedding/text/making.py.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import embedding.text.libraries  # noqa: F401  isort: skip (before the libraries)
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.util.distributed import distributed_evaluation
from torch.utils.data import BatchSampler
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from embedding.text.config import TextConfig
from embedding.text.encoder import has_bfloat16, prompts_of
from embedding.text.pairs import BatchPlan, Pairs
from embedding.text.retrieval import Retrieval, RetrievalTask, retrieve
from embedding.text.vocabulary import extend_vocabulary
from recsys.errors import NonFiniteError
from recsys.files import EMBED_AGAIN, reading, write_json, writing
from recsys.job import say
from recsys.progress import progress_bar
from recsys.runtime.collectives import share, sharing_errors
from recsys.runtime.env import Env

KEPT_CHECKPOINTS = 2
FINISHED = "finished"
"""File in a checkpoint to which every rank has written its part."""


@dataclass(frozen=True)
class Evaluation:
    """Retrieval metrics of the model after a number of steps; step 0 is the untrained model."""

    step: int
    results: list[Retrieval]


class RankSlices(BatchSampler):
    """Every batch of the plan, dealt to the ranks in equal slices, one after the other.

    The trainer gives rank r every r-th list of rows. With slices of one batch, the ranks together
    see the batches that a single one would see, whatever their number.
    """

    def __init__(self, plan: BatchPlan, num_ranks: int):
        """Args: num_ranks: that share a batch; its size is a multiple of it."""
        self.plan = plan
        self.num_ranks = num_ranks
        # Asked for by the trainer; None: batches differ in size.
        self.batch_size: Any = None
        self.drop_last = True

    def __len__(self) -> int:
        return len(self.plan) * self.num_ranks

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.plan:
            for part in np.split(rows, self.num_ranks):
                yield part.tolist()


class PairTrainer(SentenceTransformerTrainer):
    """The library's trainer over our batches, without its model card."""

    def __init__(self, *, plan: BatchPlan, num_ranks: int, **arguments: Any):
        """Args: plan: of the batches; the rest is the library's."""
        self.slices = RankSlices(plan, num_ranks)
        super().__init__(**arguments)

    def get_batch_sampler(self, *_: Any, **__: Any) -> BatchSampler:
        """Return the planned batches."""
        return self.slices

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out: it measures the data again, and its text differs from run to run."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, then mark it: a killed training leaves a half-written one.

        Raises:
            Exception: what kept any rank from writing its part, on every rank (`sharing_errors`).
        """
        name = f"checkpoint-{self.state.global_step}"
        with sharing_errors():
            super()._save_checkpoint(model, trial)
        share((Path(str(self.args.output_dir)) / name / FINISHED).touch)

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        """Return the library's loss.

        Raises:
            NonFiniteError: it is not a finite number.
        """
        loss = super().compute_loss(*arguments, **named)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"text encoder: the loss is {value.item()} at step {self.state.global_step + 1}; "
                f"lower encoder.text.learning_rate"
            )
        return loss


class RetrievalEvaluator(BaseEvaluator):
    """Runs the retrieval tasks when the trainer evaluates, and keeps what came out in a file."""

    def __init__(
        self,
        tasks: list[RetrievalTask],
        batch_size: int,
        file: Path,
        done: list[Evaluation],
        losses: list[float],
    ):
        """Args: file: where evaluations are kept; done: those of an earlier, interrupted run.

        losses: filled while training, emptied into the line of the next evaluation.
        """
        super().__init__()
        self.losses = losses
        self.tasks = tasks
        self.batch_size = batch_size
        self.file = file
        self.done = done

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return recall@1 by task; called on rank 0 alone, whose `encode` all ranks share."""

        def encode(texts: list[str], are_queries: bool) -> np.ndarray:
            """Return unit vectors float32 [N, D]."""
            return model.encode(
                texts,
                prompt=prompts_of(model)[are_queries],
                batch_size=self.batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )

        evaluation = Evaluation(max(steps, 0), retrieve(encode, self.tasks))
        if self.done and self.done[-1].step == evaluation.step:
            self.done.pop()
        self.done.append(evaluation)
        write_json(self.file, {"evaluations": [dataclasses.asdict(e) for e in self.done]})
        loss = f"loss {self.losses.pop():.4f}, " if self.losses else ""
        self.losses.clear()
        found = described(evaluation.results)
        say(f"text encoder at step {evaluation.step:,}: {loss}{found}")
        return {f"{r.perspective}/{r.language}": r.recall_at_1 for r in evaluation.results}


def described(results: list[Retrieval]) -> str:
    """Return recall@1 by perspective, over all its queries, for one line."""
    parts = []
    for perspective in dict.fromkeys(r.perspective for r in results):
        mine = [r for r in results if r.perspective == perspective]
        weights = [r.num_queries for r in mine]
        recall = np.average([r.recall_at_1 for r in mine], weights=weights)
        parts.append(f"{perspective} {recall:.3f} ({sum(weights):,})")
    return "recall@1 " + ", ".join(parts)


class Progress(TrainerCallback):
    """Progress on rank 0; passes the mean loss since the last evaluation on to the evaluator."""

    def __init__(self, losses: list[float], is_first: bool):
        """Args: losses: where the evaluator finds them."""
        self.losses = losses
        self.is_first = is_first
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar at the step where training goes on."""
        self.bar = progress_bar(
            desc="text pairs",
            unit="step",
            total=state.max_steps,
            initial=state.global_step,
            is_shown=self.is_first,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        assert self.bar is not None, "training has begun"
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        assert self.bar is not None, "training has begun"
        self.bar.close()


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint below `folder` that all ranks finished, or None."""
    finished = [
        path.parent
        for path in folder.glob(f"checkpoint-*/{FINISHED}")
        if re.fullmatch(r"checkpoint-\d+", path.parent.name)
    ]
    return max(finished, key=lambda path: int(path.name.split("-")[1]), default=None)


def fine_tune(
    model: SentenceTransformer,
    pairs: Pairs,
    tasks: list[RetrievalTask],
    *,
    batches: BatchPlan,
    config: TextConfig,
    folder: Path,
    seed: int,
    env: Env,
) -> list[Evaluation]:
    """Evaluate the model as it is, then train it in place on (anchor, positive) pairs.

    The other positives of a batch are the negatives. 10 % of the steps warm up, then the step size
    falls to 0. All ranks call this. A run that finds a checkpoint in `folder` goes on from there and
    ends with the same weights.

    Args:
        batches: of `pairs`.
        folder: of checkpoints and evaluations.

    Returns the evaluations on rank 0, [] elsewhere.

    Raises:
        NonFiniteError: the loss is not a finite number.
    """
    file = folder / "evaluations.json"

    def begun() -> tuple[Path | None, list[Evaluation]]:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = newest_checkpoint(folder)
        return checkpoint, read_evaluations(file) if checkpoint else []

    checkpoint, evaluations = share(begun)
    step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    done = [e for e in evaluations if e.step <= step]
    if checkpoint:
        say(f"text encoder: going on from step {step:,} of {len(batches):,}")
    losses: list[float] = []
    evaluator = RetrievalEvaluator(tasks, config.batch_size, file, done, losses)
    if tasks and not checkpoint:
        with distributed_evaluation(model) as is_asking:
            if is_asking:
                evaluator(model, steps=0)
    if not len(batches):
        return done if env.is_first else []
    if config.extend_vocabulary:
        texts = pairs.anchor + pairs.positive
        added = extend_vocabulary(model, texts, config.extend_vocabulary, seed)
        say(f"tokenizer: {len(added):,} characters added that it did not know")
    trainer = _trainer(model, pairs, evaluator, batches, config, folder, seed, env)
    with writing(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if tasks and step == len(batches):  # the trainer evaluates at its last step, were there one
        trainer.evaluate()
    if losses:
        say(f"text encoder at step {len(batches):,}: loss {losses[-1]:.4f}")
    model.eval()
    return done if env.is_first else []


def _trainer(
    model: SentenceTransformer,
    pairs: Pairs,
    evaluator: RetrievalEvaluator,
    batches: BatchPlan,
    config: TextConfig,
    folder: Path,
    seed: int,
    env: Env,
) -> PairTrainer:
    """Return the library's trainer with our batches, evaluations and checkpoints."""
    every = max(1, -(-len(batches) // (config.evaluations + 1)))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        # The plan holds every epoch, so that a step has one number and a resumed run finds its own.
        num_train_epochs=1,
        per_device_train_batch_size=max(1, batches.batch_size // env.world_size),
        learning_rate=config.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=has_bfloat16(config.precision, env.device),
        use_cpu=model.device.type == "cpu",
        seed=seed,
        logging_steps=every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluator.tasks else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=config.save_every_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    of_items, of_queries = prompts_of(model)
    if of_items or of_queries:
        arguments.prompts = {"anchor": of_queries, "positive": of_items}
    # One process is one device: without torchrun the library would spread over all GPUs it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = PairTrainer(
        plan=batches,
        num_ranks=env.world_size,
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": pairs.anchor, "positive": pairs.positive}),
        loss=MultipleNegativesRankingLoss(model, gather_across_devices=env.world_size > 1),
        evaluator=evaluator if evaluator.tasks else None,
        callbacks=[Progress(evaluator.losses, env.is_first)],
    )
    longest = model.max_seq_length or config.pair_max_tokens
    trainer.data_collator.max_length = min(config.pair_max_tokens, longest)
    trainer.remove_callback(PrinterCallback)
    return trainer


def read_evaluations(file: Path) -> list[Evaluation]:
    """Return the evaluations that an earlier run kept; none where there is no file."""
    if not file.is_file():
        return []
    with reading(file, f"delete {file.parent} and {EMBED_AGAIN}"):
        return [
            Evaluation(entry["step"], [Retrieval(**result) for result in entry["results"]])
            for entry in json.loads(file.read_text(encoding="utf-8"))["evaluations"]
        ]
