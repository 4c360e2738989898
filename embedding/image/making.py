"""Making of the image encoder: tag pretext, heads, evaluation on unseen pictures, and its folder.

Input: prepared items and their pictures. Output: encoders/image/. Called by
embedding/making.py. A killed run leaves its state in encoders/.image.training/ and goes on there.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedding.encoder_folder import Stamp, stamp_of
from embedding.features.catalogue import Catalogue
from embedding.image.config import ImageConfig, chosen_style_head
from embedding.image.encoder import ImageEncoder
from embedding.image.extractor import ImageExtractor
from embedding.image.heads import fit_heads, measure
from embedding.image.pretext import PretextConfig, train_on_tags
from embedding.image.pretext_data import tag_data
from embedding.image.sample import Pictures, PictureSample, choose_pictures, load_usable
from recsys.files import new_folder, write_json
from recsys.runtime.collectives import share
from recsys.runtime.env import Env
from recsys.schema import Manifest


class ImageMaker:
    """Makes, saves and loads the image encoder of a workspace; all ranks use it alike."""

    name = "image"
    contents = "pictures"
    scaling = "mean 0, deviation 1 over a sample of items"
    files: tuple[str, ...] = ("config.json", "weights.safetensors")

    def __init__(
        self, workspace: Path, manifest: Manifest, config: ImageConfig, *, seed: int, env: Env
    ):
        """Choose the style head that `auto` means for this data."""
        style_head = chosen_style_head(config.style_head, manifest.has_artists)
        self.config = dataclasses.replace(config, style_head=style_head)
        self.prepared = workspace / "prepared"
        self.folder = workspace / "encoders" / self.name
        self.manifest = manifest
        self.root = Path(str(manifest.image_root))
        self.seed = seed
        self.env = env

    @property
    def label(self) -> str:
        """The encoder in the feature manifest."""
        return f"{self.config.backbone}/{self.config.semantic_head}+{self.config.style_head}"

    @property
    def description(self) -> str:
        """The encoder in the line of its stage."""
        return (
            f"{self.config.backbone}, weights {self.config.weights}, pretext "
            f"{self.config.pretext_epochs} epochs, {self.config.semantic_head} and "
            f"{self.config.style_head} heads"
        )

    def stamp(self) -> Stamp:
        """Return what the encoder that is asked for depends on."""
        return stamp_of(self.config, "weights", self.manifest, self.seed)

    def build(self, folder: Path | None = None) -> ImageEncoder:
        """Return the network with heads that are not fitted yet; `folder`: of a finished encoder."""
        encoder = ImageEncoder(self.config, folder)
        encoder.to(self.env.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return encoder

    def load(self) -> ImageExtractor:
        """Load the finished encoder; its folder holds the whole network."""
        encoder = self.build(self.folder)
        encoder.load(self.folder)
        encoder.eval()
        return ImageExtractor(
            encoder, self.config, image_root=self.root, num_threads=self.env.threads
        )

    def make(self, stamp: Stamp) -> dict[str, Any]:
        """Train the network on tags, fit the heads, measure both on unseen pictures, and save.

        Returns what embedding.image.heads.measure found.
        """
        catalogue = Catalogue(self.prepared)
        sample = choose_pictures(catalogue, self.config, self.seed)
        # An untrained network begins with the same weights every time: a killed run that had not
        # ended its first pass is repeated, not replaced by another.
        torch.manual_seed(self.seed)
        encoder = self.build()
        training = self.folder.with_name(".image.training")
        if self.config.pretext_epochs:
            self._train(encoder, catalogue, sample, training, stamp)
        encoder.eval()
        fitted = sample.learned[: self.config.fit_pictures]
        fit_heads(
            encoder,
            self._load(catalogue, sample, fitted[self.env.rank :: self.env.world_size]),
            num_views=self.config.fit_views,
            batch_size=self.config.batch_size,
            seed=self.seed,
        )

        def measure_and_save() -> dict[str, Any]:
            found: dict[str, Any] = {}
            if len(sample.measured):
                found = measure(
                    encoder,
                    self._load(catalogue, sample, sample.measured),
                    held_out_artists=self.config.held_out_artists,
                    batch_size=self.config.batch_size,
                )
            with new_folder(self.folder) as made:
                encoder.save(made, stamp.content())
                write_json(made / "evaluation.json", found)
            shutil.rmtree(training, ignore_errors=True)
            return found

        return share(measure_and_save)

    def _load(self, catalogue: Catalogue, sample: PictureSample, picked: np.ndarray) -> Pictures:
        """Return the usable pictures at positions `picked` int [N] of the sample."""
        rows = [sample.rows[i] for i in np.sort(picked)]
        return load_usable(catalogue, self.root, rows, self.config)

    def _train(
        self,
        encoder: ImageEncoder,
        catalogue: Catalogue,
        sample: PictureSample,
        folder: Path,
        stamp: Stamp,
    ) -> None:
        """Train the network on the tags of the learned pictures, on all ranks."""
        rows = [sample.rows[i] for i in np.sort(sample.learned)]
        train_on_tags(
            encoder,
            tag_data(catalogue, rows, self.root, folder, config=self.config, env=self.env),
            PretextConfig(
                epochs=self.config.pretext_epochs,
                patience=self.config.pretext_patience,
                learning_rate=self.config.pretext_learning_rate,
                batch_size=self.config.pretext_batch_size,
                seed=self.seed,
            ),
            env=self.env,
            folder=folder,
            stamp=stamp,
        )
