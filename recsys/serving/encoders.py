"""Encoders of a bundle: words and uploaded pictures to vectors, by the networks that made its vectors.

In: texts and picture files of a request. Out: a vector by modality. Called by recommender.py and
additions.py; `embedding` is imported when the first text or picture comes.
Shapes: E modality width.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.spec import EXPORT_AGAIN
from recsys.errors import UserError
from recsys.files import read_json, reading


class Encoders:
    """The image and the text encoder of one bundle, each loaded when it is first needed."""

    def __init__(self, bundle: Bundle):
        """Args: bundle: opened; it may have one encoder, both or none."""
        self._bundle = bundle

    def text(self, words: str) -> NDArray[np.float32]:
        """Return the vector [E] of words.

        Raises:
            UserError: the bundle has no text encoder.
        """
        return self._text_encoder.encode([words], are_queries=True)[0]

    def picture(self, content: bytes) -> dict[str, NDArray[np.float32]]:
        """Return the vectors [E] of a picture file by modality: `semantic` and `style`.

        Raises:
            UserError: the bundle has no image encoder, or the file is no usable picture.
        """
        from recsys.serving.uploads import uploaded_pixels

        encoder, settings = self._image_encoder
        pixels_SS3 = uploaded_pixels(content, settings.size, settings.framing)
        return {
            name: vectors[0].numpy()
            for name, vectors in encoder.encode(pixels_SS3[None].copy()).items()
        }

    def _folder(self, kind: str) -> Path:
        folder = self._bundle.encoder_folder(kind)
        if folder is None:
            raise UserError(
                f"this bundle has no {kind} encoder, which this request needs; export it from a "
                f"workspace with encoders/{kind} (made by launch/embed.py)"
            )
        return folder

    @cached_property
    def _image_encoder(self) -> tuple[Any, Any]:
        """Return the encoder and its ImageConfig."""
        from embedding.image.config import ImageConfig
        from embedding.image.encoder import ImageEncoder

        folder = self._folder("image")
        with reading(folder / "config.json", EXPORT_AGAIN):
            settings = ImageConfig(**read_json(folder / "config.json", EXPORT_AGAIN)["settings"])
        encoder = ImageEncoder(settings, folder)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        encoder.load(folder)
        return encoder.eval(), settings

    @cached_property
    def _text_encoder(self) -> Any:
        from embedding.text.encoder import TextEncoder, load_text_encoder

        folder = self._folder("text")
        settings = read_json(folder / "config.json", EXPORT_AGAIN)["settings"]
        with reading(folder / "model", EXPORT_AGAIN):
            model = load_text_encoder(
                str(folder / "model"), settings["max_tokens"], torch.device("cpu")
            )
        encoder = TextEncoder(model, settings["batch_size"])
        encoder.load_scaling(folder)
        return encoder
