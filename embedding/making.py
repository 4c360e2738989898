"""Making of encoders: one way to load an unchanged encoder, or to make it, for pictures and for texts.

Input: prepared data and settings. Output: encoders/<name>/ and an extractor for
embedding/features/extraction.py. Called by launch/embed.py on every rank.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from embedding.config import EncodersConfig
from embedding.encoder_folder import Stamp, fingerprint, read_stamp
from embedding.features.extraction import MadeBy
from embedding.features.extractor import Extractor
from embedding.image.making import ImageMaker
from embedding.text.making import TextMaker
from recsys.errors import UserError
from recsys.runtime.collectives import share
from recsys.runtime.env import Env
from recsys.schema import Manifest


class Maker(Protocol):
    """Makes, saves and loads one kind of encoder; ImageMaker and TextMaker."""

    name: str
    """`image` or `text`."""
    contents: str
    """Plural of what is encoded, for messages."""
    scaling: str
    """Scaling of the vectors, for the feature manifest."""
    folder: Path
    """Folder of the finished encoder."""
    files: tuple[str, ...]
    """Files and folders below `folder` that decide the vectors."""

    @property
    def label(self) -> str:
        """The encoder in the feature manifest."""
        ...

    @property
    def description(self) -> str:
        """The encoder in the line of its stage."""
        ...

    def stamp(self) -> Stamp:
        """Return what the encoder that is asked for depends on; called on rank 0 alone."""
        ...

    def make(self, stamp: Stamp) -> Any:
        """Train and save the encoder; return its evaluation. All ranks call this."""
        ...

    def load(self) -> Extractor:
        """Load the finished encoder; needs no file but those of its folder."""
        ...


@dataclass(frozen=True, kw_only=True)
class OpenedEncoder:
    """An encoder that is ready, and how it came about."""

    extractor: Extractor
    made_by: MadeBy
    description: str
    """For the line of its stage."""
    evaluation: Any
    """Measured when the encoder was made; None where an unchanged one was loaded."""


def makers(
    workspace: Path, manifest: Manifest, config: EncodersConfig, *, seed: int, env: Env
) -> list[Maker]:
    """Return the makers of the encoders that the data set has a use for.

    Raises:
        UserError: the data set has neither pictures nor texts.
    """
    found: list[Maker] = []
    if manifest.has_images:
        found.append(ImageMaker(workspace, manifest, config.image, seed=seed, env=env))
    if manifest.has_texts:
        found.append(TextMaker(workspace, manifest, config.text, seed=seed, env=env))
    if not found:
        raise UserError(
            f"{workspace / 'prepared'}: the recipe maps neither items.image nor items.text, so there "
            f"is nothing to embed; train without modalities"
        )
    return found


def open_encoder(maker: Maker, *, retrain: bool) -> OpenedEncoder:
    """Load the encoder where an unchanged one is finished, else make it; all ranks call this.

    Args:
        retrain: make it anew where it was trained on other data than today's.
    """
    stamp, is_kept, note = share(partial(_look, maker, retrain))
    evaluation = None if is_kept else maker.make(stamp)
    extractor = maker.load()
    revision = share(lambda: fingerprint(*(maker.folder / name for name in maker.files)))
    return OpenedEncoder(
        extractor=extractor,
        made_by=MadeBy(encoder=maker.label, revision=revision, scaling=maker.scaling),
        description=maker.description + note,
        evaluation=evaluation,
    )


def _look(maker: Maker, retrain: bool) -> tuple[Stamp, bool, str]:
    """Return the stamp asked for, whether the encoder that is there fits it, and a note on its data."""
    stamp, made = maker.stamp(), read_stamp(maker.folder)
    if made is None or not stamp.fits(made):
        return stamp, False, ""
    if made.get("trained_on") == stamp.trained_on:
        return stamp, True, ""
    if retrain:
        return stamp, False, ""
    return stamp, True, ", kept as trained on earlier data (retrain=true trains it anew)"
