"""Configuration of launch/embed.py: both encoders, and how their vectors are made and kept."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from embedding.features.codes import BITS
from embedding.image.config import ImageConfig
from embedding.text.config import TextConfig
from recsys.runtime.threads import ProcessConfig


@dataclass(frozen=True, kw_only=True)
class EncodersConfig:
    """Both encoders."""

    image: ImageConfig = field(default_factory=ImageConfig)
    """Image encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text encoder."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The encoders, and how their vectors are made and kept."""

    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads."""
    encoder: EncodersConfig = field(default_factory=EncodersConfig)
    """Image and text encoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    seed: int = 0
    """Seed of the encoders' training and of samples."""
    retrain: bool = False
    """Train an encoder anew when items or pairs were added or changed since; every vector is made
    anew with it. False: it is kept, and only new vectors are made."""
    forget_missing: bool = False
    """Mask items whose picture is gone or cannot be read any more, and go on where the picture folder
    is missing or empty. False: such items keep their vectors, and such a folder is refused."""
    vector_bits: int = 16
    """Bits of a stored number: 16 (fp16), or as codes of a product quantiser 2, an eighth of the bytes of
    fp16, or 4. Vectors that are there in fp16 are coded, not encoded anew; codes cannot go back. Own
    vectors have a key of their own (`bits` of items.vectors)."""
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """Items per file of the feature store; null: as the tables that are there, else 1024, and more
    above 4 million items (32768 at most)."""

    def problems(self) -> list[str]:
        """Return a text for bits that no form of stored vectors has."""
        given = self.vector_bits
        return [] if given in BITS else [f"vector_bits={given}: expected one of 16, 4 and 2"]
