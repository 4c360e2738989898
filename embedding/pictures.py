"""Picture files to arrays: every format, no surprises, a reason for every picture that cannot be used.

Called by extraction and by the tag pretext, from several threads.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

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
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise UnusablePictureError("outside", f"{name}: leaves the image root {root}")
    return path


def load_picture(path: Path, size: int) -> np.ndarray:
    """Return an RGB picture as uint8 [size, size, 3].

    The shorter side is scaled to `size`, then the centre is cut out. Transparency lies on white, the
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
                picture = _as_rgb(opened)
    except FileNotFoundError as error:
        raise UnusablePictureError("missing", f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise UnusablePictureError("too_large", f"{path}: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, IndexError) as error:
        if isinstance(error, UnusablePictureError):
            raise
        raise UnusablePictureError("broken", f"{path}: {error}") from error
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


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
    pool: ThreadPoolExecutor, root: Path, names: list[str | None], size: int
) -> tuple[np.ndarray, list[str | None]]:
    """Decode pictures in parallel.

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
    for index, result in enumerate(pool.map(one, names)):
        if isinstance(result, str):
            reasons[index] = result
        else:
            pixels[index] = result
    return pixels, reasons
