"""Making of the text encoder: the model it starts from, fine-tuning on text pairs, and its folder.

Input: prepared items and text pairs. Output: encoders/text/. Called by
embedding/making.py. A killed run leaves its checkpoints in encoders/.text.training/ and goes on there.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from embedding.encoder_folder import Stamp, read_stamp, stamp_of
from embedding.features.catalogue import Catalogue, drawn, sample_rows
from embedding.text.config import TextConfig
from embedding.text.encoder import (
    TextEncoder,
    build_scratch_encoder,
    load_text_encoder,
    set_prompts,
)
from embedding.text.extractor import TextExtractor
from embedding.text.fine_tuning import fine_tune
from embedding.text.pairs import Split, readable
from embedding.text.retrieval import PROTOCOL
from embedding.text.training_plan import plan_training
from recsys.files import EMBED_AGAIN, new_folder, reading, write_json
from recsys.listing import check_listing
from recsys.runtime.collectives import share
from recsys.runtime.env import Env
from recsys.schema import Manifest

_SAMPLED_TEXTS = 20_000
"""Most item texts a tokenizer is trained on."""
_SCALING_TEXTS = 2048
"""Most texts the scaling of text vectors is fitted on."""


class TextMaker:
    """Makes, saves and loads the text encoder of a workspace; all ranks use it alike."""

    name = "text"
    contents = "texts"
    scaling = "unit length, then mean 0 and mean deviation 1 over a sample of items"
    files: tuple[str, ...] = ("config.json", "scaling.npz", "model")

    def __init__(
        self, workspace: Path, manifest: Manifest, config: TextConfig, *, seed: int, env: Env
    ):
        """Args: seed: of training and samples."""
        self.config = config
        self.prepared = workspace / "prepared"
        self.folder = workspace / "encoders" / self.name
        self.training = workspace / "encoders" / ".text.training"
        self.manifest = manifest
        self.seed = seed
        self.env = env

    @property
    def label(self) -> str:
        """The encoder in the feature manifest."""
        return self.config.path

    @property
    def description(self) -> str:
        """The encoder in the line of its stage."""
        return self.config.path

    def stamp(self) -> Stamp:
        """Return what the encoder that is asked for depends on."""
        return stamp_of(self.config, "path", self.manifest, self.seed)

    def load(self) -> TextExtractor:
        """Load the finished encoder; its folder holds the whole model.

        Raises:
            DamagedFileError: a file of it is missing or has changed.
        """
        remedy = f"delete {self.folder} and {EMBED_AGAIN}"
        share(lambda: check_listing(self.folder, remedy))
        with reading(self.folder / "model", remedy):
            model = load_text_encoder(
                str(self.folder / "model"), self.config.max_tokens, self.env.device
            )
        encoder = TextEncoder(model, self.config.batch_size)
        encoder.load_scaling(self.folder)
        return TextExtractor(encoder)

    def make(self, stamp: Stamp) -> list[dict[str, Any]]:
        """Load or build the model, train it on the pairs on all ranks, evaluate and save it.

        Returns its evaluations, {"step": n, "results": [one per perspective and language]}.
        """
        plan = plan_training(
            self.prepared,
            self.manifest,
            self.config,
            num_ranks=self.env.world_size,
            seed=self.seed,
        )
        if plan.batches.num_batches and plan.batches.batch_size != self.config.pair_batch_size:
            # A training cut off at batches of another size has taken other pairs so far.
            stamp_of_training = dataclasses.replace(
                stamp, more={"pairs_a_step": plan.batches.batch_size}
            )
        else:
            stamp_of_training = stamp
        item_ids, texts = self._sample()
        share(lambda: self._start(stamp_of_training, plan.split, item_ids, texts))
        with reading(self.training / "untrained", f"delete {self.training} and {EMBED_AGAIN}"):
            model = load_text_encoder(
                str(self.training / "untrained"), self.config.max_tokens, self.env.device
            )
        evaluations = fine_tune(
            model,
            plan.split.train,
            plan.tasks,
            batches=plan.batches,
            config=self.config,
            folder=self.training / "checkpoints",
            seed=self.seed,
            env=self.env,
        )

        def save() -> list[dict[str, Any]]:
            found = [dataclasses.asdict(evaluation) for evaluation in evaluations]
            encoder = TextEncoder(model, self.config.batch_size)
            known = [text for text in texts if text]
            encoder.fit_scaling([known[i] for i in drawn(len(known), _SCALING_TEXTS, self.seed)])
            with new_folder(self.folder) as made:
                encoder.save(made)
                if found:
                    content = {"protocol": PROTOCOL, "counts": plan.split.counts()}
                    write_json(made / "evaluation.json", content | {"evaluations": found})
                write_json(made / "config.json", stamp.content())
            shutil.rmtree(self.training)
            return found

        return share(save)

    def _sample(self) -> tuple[list[str], list[str | None]]:
        """Return ids and texts of a seeded sample of the items."""
        catalogue = Catalogue(self.prepared)
        rows = sample_rows(catalogue.num_rows, _SAMPLED_TEXTS, self.seed)
        return catalogue.column("item_id", rows), catalogue.column("text", rows)

    def _start(
        self, stamp: Stamp, split: Split, item_ids: list[str], texts: list[str | None]
    ) -> None:
        """Save the model that training starts from, unless a training of this stamp was cut off."""
        begun = read_stamp(self.training)
        if begun is not None and stamp.continues(begun):
            return
        with new_folder(self.training) as made:
            if self.config.path == "scratch":
                seen = readable(item_ids, texts, split, self.config.held_out_tenths)
                model = build_scratch_encoder(
                    split.train.anchor + split.train.positive + seen,
                    made,
                    vocabulary_size=self.config.vocabulary_size,
                    hidden_dim=self.config.hidden_dim,
                    num_layers=self.config.num_layers,
                    max_tokens=self.config.max_tokens,
                    seed=self.seed,
                    device=self.env.device,
                )
            else:
                model = load_text_encoder(self.config.path, self.config.max_tokens, self.env.device)
            set_prompts(model, self.config.prompt, self.config.query_prompt)
            model.save(str(made / "untrained"), create_model_card=False)
            write_json(made / "config.json", stamp.content())
