"""Training plan of the text encoder: pairs to train on, batches of them, and retrieval tasks.

Input: prepared/pairs.parquet and settings. Called by embedding/text/making.py.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from embedding.text.config import TextConfig
from embedding.text.pairs import (
    BatchPlan,
    Pairs,
    Split,
    groups_of,
    read_pairs,
    split_by_entity,
    weight_key,
)
from embedding.text.retrieval import RetrievalTask, retrieval_tasks
from recsys.errors import UserError
from recsys.job import say
from recsys.schema import Manifest


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Pairs, batches and retrieval tasks of one training."""

    split: Split
    """Pairs to train on, and pairs of entities that training never sees."""
    batches: BatchPlan
    """Batches of the pairs to train on; without any the model is not trained."""
    tasks: list[RetrievalTask]
    """Retrieval tasks on the held-out pairs."""


def plan_training(
    prepared: Path, manifest: Manifest, config: TextConfig, *, num_ranks: int, seed: int
) -> TrainingPlan:
    """Read and split the pairs, cut them into batches, and say what is trained on.

    Raises:
        UserError: `scratch` without a batch to train on, a weight of a language that no pair has, or
            pairs that cannot be read.
    """
    uses_pairs = manifest.has_pairs and (config.epochs > 0 or config.max_queries > 0)
    pairs = read_pairs(prepared) if uses_pairs else Pairs([], [], [], [], [])
    if len(pairs):
        check_languages(pairs, config.perspective_weights)
    split = split_by_entity(pairs, config.held_out_tenths)
    batches = BatchPlan(
        split.train,
        epochs=config.epochs,
        batch_size=config.pair_batch_size,
        weights=config.perspective_weights,
        max_pairs=config.max_pairs,
        num_ranks=num_ranks,
        seed=seed,
    )
    if len(pairs):
        say(
            f"text pairs: {len(split.train):,} to train on, {len(split.held_out):,} of "
            f"{split.num_entities:,} held-out entities, {split.num_left_out:,} left out that share a "
            f"text with these"
        )
    reason = "" if len(batches) else why_no_batches(manifest, config, pairs, split.train)
    if config.path == "scratch" and reason:
        raise UserError(
            f"encoder.text.path=scratch: a text encoder is trained on text pairs, and {reason}; or "
            f"give a folder or hub name"
        )
    if batches.num_batches:
        say(f"batches an epoch: {batches}")
        if batches.batch_size != config.pair_batch_size:
            say(
                f"note: {num_ranks} ranks do not share {config.pair_batch_size} pairs equally; a step "
                f"takes {batches.batch_size} (encoder.text.pair_batch_size)"
            )
    elif len(pairs) and config.epochs:
        say(f"the text encoder is not trained: {reason}")
    tasks = retrieval_tasks(split.held_out, config.max_queries)
    return TrainingPlan(split=split, batches=batches, tasks=tasks)


def check_languages(pairs: Pairs, weights: Collection[str]) -> None:
    """Refuse a weight of a language that no pair of its perspective has.

    Raises:
        UserError: names the languages that there are.
    """
    named = [name for name in weights if "/" in name]
    if not named:  # most encoders; all pairs are not gone through for nothing
        return
    known = [name for name in groups_of(pairs, least=0) if "/" in name]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise UserError(
            f"encoder.text.perspective_weights: no text pair is of {', '.join(unknown)}; expected "
            f"languages of the data's pairs: {', '.join(known) or 'it has none'}"
        )


def why_no_batches(manifest: Manifest, config: TextConfig, pairs: Pairs, train: Pairs) -> str:
    """Return why text pairs make no batch, and what to change."""
    if not manifest.has_pairs:
        return "the data has none; map pairs in the recipe and run launch/prepare.py again"
    if config.epochs < 1:
        return f"encoder.text.epochs={config.epochs}; set it to 1 or more"
    weights = config.perspective_weights
    if not any(weights.get(weight_key(name, weights), 0.0) for name in groups_of(train, least=0)):
        return (
            f"encoder.text.perspective_weights={weights} leave out all "
            f"{len(train):,} to train on; give their perspectives weights above 0"
        )
    return (
        f"{len(train):,} of {len(pairs):,}, of {len(set(train.entity)):,} entities, make no batch: a "
        f"batch is two pairs or more of one perspective and language, of different entities and "
        f"texts. Give pairs of more entities (pairs.entity says what a pair speaks of), or hold "
        f"fewer out (encoder.text.held_out_tenths={config.held_out_tenths})"
    )
