"""Settings of the image encoder."""

from dataclasses import dataclass, field
from typing import Literal

from embedding.holdout import tenths_problems
from embedding.image.pictures import Framing

FAMILIES = ("resnet", "wide_resnet", "resnext", "convnext", "squeezenet")
"""First letters of the names of networks of torchvision.models that can be a backbone."""
TIMM = "timm/"
"""First letters of a backbone of timm; its name there follows."""
StyleHead = Literal["auto", "gram_max", "moments", "gram_pca", "palette", "contrastive"]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image encoder; presets in configs/encoder/image/."""

    backbone: str = "resnet_tiny"
    """`resnet_tiny`; a ResNet, ConvNeXt or SqueezeNet of torchvision.models by name; or `timm/NAME`, a
    model of timm by name, `timm/hf-hub:OWNER/NAME` of a hub, or `timm/local-dir:FOLDER`."""
    weights: str = "none"
    """Weights the network starts from: `none` (random), `torchvision` or `timm` (the library's download,
    or the files of the folder), a file (.safetensors, or a torch file of tensors), or
    `package:NAME/FILE` of an installed Python package."""
    size: int = 96
    """Side of the square input, in pixels."""
    framing: Framing = "crop"
    """How a picture becomes a square: `crop` (its centre) or `pad` (white around it)."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of colours in which the network reads a picture."""
    semantic_head: Literal["pool", "discriminant", "contrastive"] = "discriminant"
    """`pool` (the paper: average of the last stage), `discriminant` (pooled, then what varies within a
    content is whitened) or `contrastive` (the same, then a matrix that is trained to bring contents
    together across artists; it keeps less of the artist, and needs items.content)."""
    semantic_dim: int = 512
    """Width of the contrastive semantic head."""
    semantic_steps: int = 600
    """Optimizer steps of the contrastive semantic head."""
    semantic_blocks: list[str] = field(default_factory=list)
    """Names of the blocks, for a model of timm the numbers of its stages, of whose channels the semantic
    head reads means and deviations; empty: it reads the pooled last features."""
    semantic_grid: int = 0
    """Cells a side of a grid; the semantic head also reads the means of the channels of semantic_blocks
    in each of its cells, and so where something is drawn; 0: it does not."""
    style_head: StyleHead = "auto"
    """`gram_max` (the paper), `moments`, `gram_pca`, `palette`, `contrastive`, or `auto`: contrastive
    where the items have artists, else palette."""
    style_blocks: list[str] = field(default_factory=list)
    """Names of the early blocks the style head reads, for a model of timm the numbers of its stages;
    empty: the default of the family, for timm the stages of at least an eighth of the side."""
    style_differences: bool = False
    """Whether the contrastive style head also reads histograms of the differences of near pixels."""
    style_dim: int = 128
    """Width of gram_pca, palette and contrastive."""
    style_steps: int = 600
    """Optimizer steps of the contrastive head, of each of its networks."""
    style_networks: int = 1
    """Networks of the contrastive style head, each from a start of its own; several find the artist of
    more pictures than one, in vectors of the same width, and take several times as long to train."""
    fit_pictures: int = 4096
    """Pictures on which heads and scaling are fitted; a larger catalogue is sampled."""
    fit_views: int = 2
    """Views of each: the whole picture and crops of it."""
    batch_size: int = 64
    """Pictures a forward pass."""
    held_out_tenths: int = 1
    """Tenths of the contents (without a content column: of the items) that no training sees; on their
    pictures the encoder is measured. 0: train on everything, measure nothing."""
    held_out_artists: list[str] = field(default_factory=list)
    """Artists whose pictures no training sees; they are measured apart."""
    pretext_epochs: int = 0
    """Most passes of the tag pretext; 0: the network stays as it starts."""
    pretext_patience: int = 4
    """Passes without a better validation mAP after which the pretext stops; 0: never."""
    pretext_learning_rate: float = 3e-3
    """Peak step size of the tag pretext; about 3e-4 from trained weights."""
    pretext_batch_size: int = 64
    """Pictures a step over all ranks."""
    pretext_min_count: int = 20
    """Tags on fewer pictures are left out of the pretext."""
    pretext_max_pictures: int = 100_000
    """Most pictures of the pretext; a larger catalogue is sampled. size x size x 3 bytes of disk each
    while it runs."""

    def problems(self) -> list[str]:
        """Return a text for an unknown network, another library's weights, or an unholdable share."""
        found = tenths_problems(self.held_out_tenths)
        if self.style_networks < 1:
            found.append(f"style_networks={self.style_networks}: expected 1 or more")
        if self.semantic_grid < 0 or (self.semantic_grid and not self.semantic_blocks):
            found.append(
                f"semantic_grid={self.semantic_grid}: expected 0, or a number above 0 and in "
                f"semantic_blocks the blocks to read"
            )
        library = "timm" if self.backbone.startswith(TIMM) else "torchvision"
        if self.backbone != "resnet_tiny" and not self.backbone.startswith((*FAMILIES, TIMM)):
            found.append(
                f"backbone={self.backbone!r}: expected resnet_tiny, a ResNet, ConvNeXt or SqueezeNet of "
                f"torchvision, or timm/NAME"
            )
        elif self.weights in ("timm", "torchvision") and self.weights != library:
            found.append(
                f"weights={self.weights}: expected {library}, none or a file, as backbone="
                f"{self.backbone!r} is a network of {library}"
            )
        return found


def chosen_style_head(style_head: StyleHead, has_artists: bool) -> StyleHead:
    """Return the head that `auto` means for this data; any other name as it is.

    Without artists the contrastive head learns from crops of one picture, and then finds fewer artists
    than the palette does without any training (LOG.md, 2026-11-26).
    """
    if style_head != "auto":
        return style_head
    return "contrastive" if has_artists else "palette"
