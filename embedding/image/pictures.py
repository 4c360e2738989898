"""Decoding of picture files: every format, bounded memory, a reason for every unusable picture.

Called by extraction and by the tag pretext, from several threads. A catalogue's pictures come from
strangers: nothing in one may stop a night's job, fill the memory, or print.
"""

import ctypes
import errno
import io
import logging
import stat
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile

from recsys.errors import UserError
from recsys.spreadsheet import write_csv

Framing = Literal["crop", "pad"]
"""How a picture becomes a square: its centre is cut out, or white is put around it."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
"""Formats that are read; JPEG includes MPO, as phones write it. Left out of Pillow's list: formats that
start another program (EPS), and those without a signature, which take any bytes for a picture (TGA)."""

MAX_PIXELS = 64_000_000
"""Larger pictures are refused as decompression bombs; a camera of 60 megapixels passes."""

LARGE_PIXELS = 16_000_000
"""Pictures of more pixels to decode are decoded one at a time, however many threads there are: the
largest takes 0.5 GiB."""

MAX_BYTES = 256 * 2**20
"""Larger files are refused: some decoders read the whole file first."""

MAX_SCANS = 100
"""Progressive JPEGs of more scans are refused: each costs a pass over the picture and few bytes of
the file. Encoders write about ten."""

REASONS = {
    "none": "the item names no picture",
    "missing": "no such file",
    "outside": "the path leaves the image root",
    "not_a_file": "a folder, pipe or device",
    "unreadable": "no permission",
    "empty": "zero bytes",
    "too_large": f"more than {MAX_PIXELS:,} pixels or {MAX_BYTES:,} bytes",
    "too_slow": f"a progressive JPEG of more than {MAX_SCANS} scans",
    "broken": "no picture, cut short, or of a format that is not read",
}
"""Every reason for which a picture is masked."""

_QUALITY = 85
"""Of JPEG: 256 pixels take some 15 kB."""

ImageFile.LOAD_TRUNCATED_IMAGES = False


def _silence_decoders() -> None:
    """Let no decoder print: what it has to remark on one picture of a million, the reasons tell.

    Done once, when this file is imported: changing filters around each picture is not safe among
    threads. libtiff writes to stderr from C unless it is told not to, and Pillow does not tell it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    for library in {line.split(maxsplit=5)[-1] for line in lines if "/libtiff" in line}:
        libtiff = ctypes.CDLL(library)
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


_silence_decoders()

_one_large_picture = threading.Lock()

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns a picture upright, by the orientation in its EXIF."""

_OF_THE_PATH = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.EACCES: "unreadable",
    errno.EPERM: "unreadable",
    errno.ELOOP: "broken",
}


class UnusablePictureError(UserError):
    """A picture that is masked; `reason` is one word for the counts, a key of REASONS."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def resolve_picture(root: Path, name: str) -> Path:
    """Return the path of a picture below `root`; `root` is resolved already.

    Raises:
        UnusablePictureError: reason `outside`, if it leaves the root (by .., an absolute path or a
            link); `broken`, if it is no path, or links that lead in a circle.
    """
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise UnusablePictureError("broken", f"{name!r}: no path ({error})") from error
    if not path.is_relative_to(root):
        raise UnusablePictureError("outside", f"{name}: leaves the image root {root}")
    return path


def load_picture(path: Path, size: int, framing: Framing = "crop") -> np.ndarray:
    """Return an RGB picture as uint8 [size, size, 3].

    The centre square is cut out, or white is put around the picture; it is scaled to `size` and turned
    upright as its EXIF says. Transparency is laid on white, an animation is its first frame, 16-bit
    colours are scaled to 8. The content of a file decides its format, not its extension.

    Args:
        framing: `crop` or `pad`.

    Raises:
        UnusablePictureError: a reason of REASONS.
        OSError: the machine fails rather than the picture (a disk error, too many open files): to go
            on would mask every picture from here.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as opened:
            return _pixels(opened, path, size, framing)
    except UnusablePictureError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UnusablePictureError("too_large", f"{path}: {error}") from error
    except Exception as error:  # decoders raise whatever a broken file makes them raise
        # What the system says has a number; what a decoder says of the content has none.
        number = error.errno if isinstance(error, OSError) else None
        if number is not None and number not in _OF_THE_PATH:
            raise
        raise UnusablePictureError(
            _OF_THE_PATH.get(number or 0, "broken"), f"{path}: {error}"
        ) from error


def jpeg_of(pixels: np.ndarray) -> bytes:
    """Return a picture, uint8 [size, size, 3], as the bytes of a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()


def _check_file(path: Path) -> None:
    """Look before opening: a pipe would be waited for, a device may act on being opened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UnusablePictureError("not_a_file", f"{path}: {stat.filemode(found.st_mode)}")
    if found.st_size == 0:
        raise UnusablePictureError("empty", f"{path}: zero bytes")
    if found.st_size > MAX_BYTES:
        raise UnusablePictureError("too_large", f"{path}: {found.st_size:,} bytes")


def _pixels(opened: ImageFile.ImageFile, path: Path, size: int, framing: Framing) -> np.ndarray:
    """Check the header, then decode to uint8 [size, size, 3]."""
    if opened.width * opened.height > MAX_PIXELS:
        raise UnusablePictureError("too_large", f"{path}: {opened.width} x {opened.height} pixels")
    if opened.info.get("progressive"):
        # In a JPEG these two bytes occur only before a scan (or in a thumbnail's).
        num_scans = path.read_bytes().count(b"\xff\xda")
        if num_scans > MAX_SCANS:
            raise UnusablePictureError("too_slow", f"{path}: {num_scans:,} scans")
    opened.draft("RGB", (size, size))
    is_large = opened.width * opened.height > LARGE_PIXELS
    with _one_large_picture if is_large else nullcontext():
        opened.load()
        picture = _padded(opened, size) if framing == "pad" else _cropped(opened, size)
    turn = _TURNS.get(_orientation(opened))
    return np.asarray(picture if turn is None else picture.transpose(turn))


def _orientation(decoded: Image.Image) -> int:
    """Return the orientation in the EXIF; some formats keep it behind the pixels."""
    try:
        return int(decoded.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken note beside the pixels says nothing against them
        return 1


def _cropped(picture: Image.Image, size: int) -> Image.Image:
    """Return the centre square as RGB; it is cut out before any scaling, so that no strip is blown up."""
    side = min(picture.size)
    if picture.size != (side, side):
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    return _as_rgb(picture, (size, size))


def _padded(picture: Image.Image, size: int) -> Image.Image:
    """Return the whole picture as RGB on a white square; it is scaled first, at least one pixel wide."""
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    whole = _as_rgb(picture, (width, height))
    if whole.size == (size, size):
        return whole
    ground = Image.new("RGB", (size, size), (255, 255, 255))
    ground.paste(whole, ((size - width) // 2, (size - height) // 2))
    return ground


def _as_rgb(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture as RGB of `size`; it is scaled before it is laid on a ground."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_grey(picture, size)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layered = _scaled(_converted(picture, "RGBA"), size)
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return _scaled(_converted(picture, "RGB"), size)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    """Return the picture itself where it has the mode already: `convert` would copy it."""
    return picture if picture.mode == mode else picture.convert(mode)


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.BILINEAR)


def _grey(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 [height, width] of a picture of deep greys, scaled to (width, height).

    White is 65535 where the format says 16 bits, else the first of 1 (for fractions), 255 and 65535
    that no pixel exceeds, else the largest pixel.
    """
    values = np.asarray(_scaled(picture, size), dtype=np.float64)
    values = np.clip(np.nan_to_num(values, nan=0, posinf=0, neginf=0), 0, None)
    most = float(values.max())
    tops = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(picture.mode, (65535.0,))
    white = next((top for top in tops if most <= top), most)
    return np.rint(values / white * 255.0).astype(np.uint8)


def load_pictures(
    pool: ThreadPoolExecutor | None,
    root: Path,
    names: Sequence[str | None],
    size: int,
    framing: Framing = "crop",
) -> tuple[np.ndarray, list[str | None]]:
    """Decode pictures in parallel; without a pool one by one.

    Args:
        framing: `crop` or `pad`, as in load_picture.

    Returns:
        (uint8 [N, size, size, 3], reasons [N]): a reason where the picture is masked (its pixels are
        zero), None where it is good. A null name has the reason `none`.
    """

    def one(name: str | None) -> np.ndarray | str:
        if name is None:
            return "none"
        try:
            return load_picture(resolve_picture(root, name), size, framing)
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


def write_unusable(path: Path, pictures: Iterable[tuple[str, str, str]]) -> int:
    """Write the CSV `item_id,file,reason` of pictures that cannot be used.

    All of them are listed, since whoever mends a catalogue needs all. Returns their number.
    """
    return write_csv(path, ["item_id", "file", "reason"], pictures)
