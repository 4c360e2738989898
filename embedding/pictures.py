"""Picture files to arrays: every format, no surprises, a reason for every picture that cannot be used.

Called by extraction and by the tag pretext, from several threads.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

MAX_PIXELS = 50_000_000
"""Larger pictures are refused as decompression bombs."""

ImageFile.LOAD_TRUNCATED_IMAGES = False


class UnusablePictureError(ValueError):
    """A picture that is masked; `reason` is one word for the counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def resolve_picture(root: Path, name: str) -> Path:
    """Return the path of a picture below `root`; `root` is resolved already.

    Raises:
        UnusablePictureError: reason `outside`, if it leaves the root (by .., an absolute path or a link).
    """
    try:
        path = (root / name).resolve()
    except (OSError, ValueError) as error:
        raise UnusablePictureError("broken", f"{name!r}: no path ({error})") from error
    if not path.is_relative_to(root):
        raise UnusablePictureError("outside", f"{name}: leaves the image root {root}")
    return path


def load_picture(path: Path, size: int) -> np.ndarray:
    """Return an RGB picture as uint8 [size, size, 3].

    The centre square is cut out and scaled to `size`. Transparency lies on white, the
    first frame stands for an animation, 16-bit greys are scaled to 8.

    Raises:
        UnusablePictureError: reason `missing`, `empty`, `too_large` or `broken`.
    """
    try:
        if path.stat().st_size == 0:
            raise UnusablePictureError("empty", f"{path}: zero bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise UnusablePictureError(
                        "too_large", f"{path}: {opened.width} x {opened.height} pixels"
                    )
                opened.draft("RGB", (size, size))
                picture = _as_rgb(_centre(opened))
    except UnusablePictureError:
        raise
    except FileNotFoundError as error:
        raise UnusablePictureError("missing", f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise UnusablePictureError("too_large", f"{path}: {error}") from error
    except Exception as error:  # decoders raise whatever a broken file makes them raise
        raise UnusablePictureError("broken", f"{path}: {error}") from error
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _centre(picture: Image.Image) -> Image.Image:
    """Cut the centre square out; before any scaling, so that no strip is ever blown up."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        grey = np.clip(values / top * 255.0, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


def load_pictures(
    pool: ThreadPoolExecutor | None, root: Path, names: Sequence[str | None], size: int
) -> tuple[np.ndarray, list[str | None]]:
    """Decode pictures in parallel; without a pool one by one.

    Returns:
        (uint8 [N, size, size, 3], reasons [N]): a reason where the picture is masked (its pixels are
        zero), None where it is good. A null name has the reason `none`.
    """

    def one(name: str | None) -> np.ndarray | str:
        if name is None:
            return "none"
        try:
            return load_picture(resolve_picture(root, name), size)
        except UnusablePictureError as error:
            return error.reason

    pixels = np.zeros((len(names), size, size, 3), dtype=np.uint8)
    reasons: list[str | None] = [None] * len(names)
    for index, result in enumerate(pool.map(one, names) if pool else map(one, names)):
        if isinstance(result, str):
            reasons[index] = result
        else:
            pixels[index] = result
    return pixels, reasons
