"""Pictures of every kind: handled, or masked with a reason; never a crash, never a word printed."""

import errno
import io
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from embedding.image import pictures
from embedding.image.pictures import (
    FORMATS,
    REASONS,
    UnusablePictureError,
    load_picture,
    load_pictures,
    resolve_picture,
    write_unusable,
)

SIZE = 8

# pytest sets aside the filter that keeps decoders quiet; a process of its own shows that it works.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def save(path, mode, colour, size=(20, 30), **options):
    Image.new(mode, size, colour).save(path, **options)
    return path


def encoded(picture, kind, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def centre(path, size=SIZE) -> list[int]:
    return load_picture(path, size)[size // 2, size // 2].tolist()


def read(tmp_path, content: bytes, size=SIZE) -> list[int]:
    """The centre pixel of a file of these bytes, whatever its name says."""
    path = tmp_path / "picture.bin"
    path.write_bytes(content)
    return centre(path, size)


def reason_of(path, size=SIZE) -> str:
    with pytest.raises(UnusablePictureError) as caught:
        load_picture(path, size)
    assert caught.value.reason in REASONS
    return caught.value.reason


def near(pixel, expected, within=6) -> bool:
    return max(abs(int(a) - b) for a, b in zip(pixel, expected, strict=True)) <= within


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, pixels: bytes, before=b"", after=b"") -> bytes:
    """A PNG by hand: what Pillow does not write. `pixels`: rows with their filter byte."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(pixels))
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + before
    return start + body + after + png_chunk(b"IEND", b"")


def flat_png(side, depth, colour, *channels) -> bytes:
    """A square PNG of one colour; the channels are samples of `depth` bits."""
    sample = ">" + ("H" if depth == 16 else "B") * len(channels)
    return png(side, side, depth, colour, (b"\0" + struct.pack(sample, *channels) * side) * side)


GOOD = {
    "rgb.png": ("RGB", (200, 10, 30), (200, 10, 30)),
    "grey.png": ("L", 77, (77, 77, 77)),
    "clear.png": ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
    "half.png": ("LA", (0, 0), (255, 255, 255)),
    "bilevel.png": ("1", 1, (255, 255, 255)),
}


@pytest.mark.parametrize("name", GOOD)
def test_modes_become_rgb_on_white(tmp_path, name):
    mode, colour, expected = GOOD[name]
    pixels = load_picture(save(tmp_path / name, mode, colour), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
    assert pixels[4, 4].tolist() == list(expected)


def test_every_format_named_is_known_to_the_library():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN), "one unknown name would make every picture broken"


# ---------------------------------------------------------------------------- colours


def test_half_transparent_colour_is_mixed_with_white(tmp_path):
    assert near(
        read(tmp_path, encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 128)), "PNG")), (255, 127, 127)
    )


def test_colour_of_clear_pixels_does_not_bleed_when_scaled(tmp_path):
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 32, 64))
    path = tmp_path / "edge.png"
    picture.save(path)
    pixels = load_picture(path, 9).astype(int)
    # Blue on the left, white on the right, between them mixtures of the two: never red.
    assert (pixels[..., 0] <= pixels[..., 2]).all()


def test_cmyk_jpeg_is_read_with_adobes_inversion(tmp_path):
    content = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    assert b"Adobe" in content  # ink is stored inverted, as Adobe does
    assert near(read(tmp_path, content), (0, 255, 255))


def test_ycck_jpeg_of_adobe_is_read(tmp_path):
    """Colours (r, g, b) are stored as Y, Cb, Cr of the inverted colour, and an inverted black."""
    luma = Image.new("RGB", (16, 16), (255 - 200, 255 - 40, 255 - 60)).convert("YCbCr")
    stored = [*luma.split(), Image.new("L", (16, 16), 255)]
    inverted = Image.merge("CMYK", [band.point(lambda v: 255 - v) for band in stored])
    content = bytearray(encoded(inverted, "JPEG", quality=100, subsampling=0))
    mark = content.index(b"Adobe")
    assert content[mark + 11] == 0
    content[mark + 11] = 2  # the transform: YCCK
    assert near(read(tmp_path, bytes(content)), (200, 40, 60), within=8)


def test_palette_and_palette_with_transparency(tmp_path):
    save_to = tmp_path / "palette.gif"
    Image.new("RGB", (20, 20), (10, 200, 30)).quantize(4).save(save_to)
    assert near(centre(save_to), (10, 200, 30), within=8)
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 250, 20, 40])
    assert near(read(tmp_path, encoded(palette, "PNG")), (250, 20, 40))
    assert read(tmp_path, encoded(palette, "PNG", transparency=1)) == [255, 255, 255]
    half = encoded(palette, "PNG", transparency=bytes([255, 128]))
    assert near(read(tmp_path, half), (252, 137, 147))


@pytest.mark.parametrize(
    ("colour", "channels", "expected"),
    [
        (0, (32768,), (128, 128, 128)),
        (0, (200,), (1, 1, 1)),
        (2, (65535, 32768, 0), (255, 128, 0)),
        (4, (65535, 0), (255, 255, 255)),
        (6, (65535, 0, 0, 32768), (255, 127, 127)),
    ],
    ids=["grey", "dark grey", "rgb", "grey and alpha", "rgba"],
)
def test_sixteen_bits_are_scaled_to_eight(tmp_path, colour, channels, expected):
    assert near(read(tmp_path, flat_png(8, 16, colour, *channels)), expected, within=1)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 128), (100.0, 100), (32768.0, 128), (1e9, 255), (0.0, 0)]
)
def test_greys_of_fractions_take_the_range_they_lie_in(tmp_path, value, expected):
    content = encoded(Image.new("F", (9, 9), value), "TIFF")
    assert near(read(tmp_path, content), [expected] * 3, within=1)


def test_greys_that_are_no_numbers_are_black(tmp_path):
    values = np.full((8, 8), np.nan, dtype=np.float32)
    values[0] = 1.0
    assert read(tmp_path, encoded(Image.fromarray(values), "TIFF")) == [0, 0, 0]


# ---------------------------------------------------------------------------- animations


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_an_animation(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    pixel = read(tmp_path, content)
    assert pixel[0] > 200 and pixel[2] < 60


# ---------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, kind, orientation):
    """A picture is stored turned by each of the eight orientations; it is always read the same."""
    upright = Image.new("RGB", (64, 64), "white")
    upright.paste("red", (0, 0, 32, 32))
    upright.paste("blue", (32, 0, 64, 32))
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    stored.save(path, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95}))
    pixels = load_picture(path, 16)
    assert near(pixels[3, 3], (255, 0, 0), within=40)
    assert near(pixels[3, 12], (0, 0, 255), within=40)
    assert near(pixels[12, 3], (255, 255, 255), within=40)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 40,
    ],
)
def test_a_broken_exif_says_nothing_against_the_pixels(tmp_path, exif, capfd):
    content = encoded(Image.new("RGB", (16, 16), (200, 10, 30)), "JPEG", exif=exif)
    assert near(read(tmp_path, content), (200, 10, 30), within=12)
    assert capfd.readouterr() == ("", "")


def test_an_orientation_that_does_not_exist_leaves_the_picture_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    content = encoded(Image.new("RGB", (16, 16), (200, 10, 30)), "JPEG", exif=exif)
    assert near(read(tmp_path, content), (200, 10, 30), within=12)


# ---------------------------------------------------------------------------- broken files


def drawn(side=64) -> Image.Image:
    """A picture with something in every part, the same every time."""
    return Image.fromarray(
        np.random.default_rng(7).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )


WHOLE = {
    "JPEG": encoded(drawn(), "JPEG"),
    "progressive": encoded(drawn(), "JPEG", progressive=True),
    "PNG": encoded(drawn(), "PNG"),
    "GIF": encoded(drawn(), "GIF"),
    "WEBP": encoded(drawn(), "WEBP"),
    "lossless": encoded(drawn(), "WEBP", lossless=True),
    "AVIF": encoded(drawn(), "AVIF"),
    "TIFF": encoded(drawn(), "TIFF", compression="tiff_lzw"),
    "BMP": encoded(drawn(), "BMP"),
    "JPEG2000": encoded(drawn(), "JPEG2000"),
    "PPM": encoded(drawn(), "PPM"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_format_is_read_whatever_its_extension(tmp_path, name):
    path = tmp_path / "picture.txt"
    path.write_bytes(WHOLE[name])
    found = load_picture(path, 64).astype(int)
    assert np.abs(found - np.asarray(drawn()).astype(int)).mean() < 60


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "lossless", "AVIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.98])
def test_a_picture_cut_short_is_broken(tmp_path, name, share, capfd):
    path = tmp_path / "cut"
    path.write_bytes(WHOLE[name][: int(len(WHOLE[name]) * share)])
    assert reason_of(path) == "broken"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content",
    [
        b"no picture",
        b"\0" * 5000,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"%PDF-1.4\n",
    ],
    ids=["text", "zeros", "png head", "jpeg head", "svg", "heif", "eps", "pdf"],
)
def test_what_is_no_picture_of_a_format_that_is_read_is_broken(tmp_path, content, capfd):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert reason_of(path) == "broken"
    assert capfd.readouterr() == ("", "")


def assert_read_or_masked(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        pixels = load_picture(path, SIZE)
        assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
    except UnusablePictureError as error:
        assert error.reason in REASONS


RANDOM = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", WHOLE)
def test_cut_and_damaged_pictures_never_raise_and_never_print(tmp_path, name, capfd):
    whole = WHOLE[name]

    @RANDOM
    @given(
        st.integers(0, len(whole)),
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8),
    )
    def damage(length, changes):
        content = bytearray(whole)
        for at, value in changes:
            content[at] = value
        assert_read_or_masked(tmp_path / "damaged", bytes(content[:length]))

    damage()
    # Headers are where a damaged byte does most.
    for at in range(min(len(whole), 120)):
        for value in (0, 0x7F, 0xFF):
            content = whole[:at] + bytes([value]) + whole[at + 1 :]
            assert_read_or_masked(tmp_path / "damaged", content)
    assert capfd.readouterr() == ("", "")


SIGNATURES = [content[:16] for content in WHOLE.values()]


@RANDOM
@given(start=st.sampled_from([b"", *SIGNATURES]), content=st.binary(max_size=400))
def test_random_bytes_never_raise(tmp_path_factory, start, content):
    assert_read_or_masked(tmp_path_factory.getbasetemp() / "random", start + content)


def test_a_job_that_meets_damaged_pictures_prints_nothing(repository, tmp_path):
    """In a process of its own, where nobody collects warnings."""
    note = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 40
    lzw = bytearray(WHOLE["TIFF"])
    lzw[50:80] = b"\xfe" * 30
    files = {
        "note.jpg": encoded(drawn(), "JPEG", exif=note),
        "damaged.tiff": bytes(lzw),
        "cut.tiff": WHOLE["TIFF"][:-40],
        "cut.jpg": WHOLE["JPEG"][:-100],
        "large.bmp": small(12_000, 12_000, "bmp"),
    }
    reasons, _, _ = measured(repository, tmp_path, files)
    assert reasons == ["read", "broken", "broken", "broken", "too_large"]


# ---------------------------------------------------------------------------- too much

BOMB_SIDE = 20_000


def webp_bomb() -> bytes:
    """An animation whose canvas is large and whose only frame is small."""
    frame = encoded(Image.new("RGB", (8, 8), "red"), "WEBP", lossless=True)[12:]
    side = (BOMB_SIDE - 1).to_bytes(3, "little")
    place = bytes(6) + (7).to_bytes(3, "little") * 2 + (100).to_bytes(3, "little") + b"\0"
    body = b"WEBP"
    for kind, part in (
        (b"VP8X", bytes([2, 0, 0, 0]) + side * 2),
        (b"ANIM", bytes(6)),
        (b"ANMF", place + frame),
    ):
        body += kind + struct.pack("<I", len(part)) + part
    return b"RIFF" + struct.pack("<I", len(body)) + body


def small(width, height, kind) -> bytes:
    """A tiny file that says it holds a huge picture."""
    if kind == "png":
        return png(width, height, 8, 2, bytes(width * 3 + 1))
    if kind == "gif":
        size = struct.pack("<HH", width, height)
        return (
            b"GIF89a"
            + size
            + b"\x80\0\0\0\0\0\xff\xff\xff,"
            + bytes(4)
            + size
            + b"\0\x02\x02D\x01\0;"
        )
    if kind == "bmp":
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + head
    if kind == "jpeg":
        content = bytearray(WHOLE["JPEG"])
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", height, width)
        return bytes(content)
    return webp_bomb()


MEASURE = """
import resource, sys, time
from pathlib import Path
from embedding.image.pictures import UnusablePictureError, load_picture
load_picture(Path(sys.argv[1]), 8)
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
reasons = []
for name in sys.argv[2:]:
    try:
        load_picture(Path(name), 8)
        reasons.append("read")
    except UnusablePictureError as error:
        reasons.append(error.reason)
seconds = time.perf_counter() - started
print(",".join(reasons), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, seconds)
"""


def measured(repository, tmp_path, files: dict[str, bytes]) -> tuple[list[str], float, float]:
    """(reasons, MiB more at the peak, seconds) of reading the files in a process of their own."""
    small_file = save(tmp_path / "first.png", "RGB", (1, 2, 3))
    paths = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small_file), *paths],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    reasons, kibibytes, seconds = done.stdout.split()
    return reasons.split(","), float(kibibytes) / 1024, float(seconds)


def test_bombs_are_refused_by_their_header_without_the_memory(repository, tmp_path):
    kinds = ("png", "gif", "bmp", "jpeg", "webp")
    files = {f"bomb.{kind}": small(BOMB_SIDE, BOMB_SIDE, kind) for kind in kinds}
    assert max(len(content) for content in files.values()) < 20_000
    reasons, mebibytes, seconds = measured(repository, tmp_path, files)
    assert reasons == ["too_large"] * len(files)
    # 1,200 MiB each if one were decoded; measured 4 MiB and 0.1 s, most of it imports of decoders.
    assert mebibytes < 60 and seconds < 5


def test_bombs_in_notes_beside_the_pixels_are_refused_without_the_memory(repository, tmp_path):
    packed = zlib.compress(bytes(300_000_000), 9)
    pixels = (b"\0" + bytes(24)) * 8
    notes = {
        "profile.png": (png_chunk(b"iCCP", b"icc\0\0" + packed), b""),
        "text.png": (png_chunk(b"zTXt", b"k\0\0" + packed), b""),
        "after.png": (b"", png_chunk(b"iTXt", b"k\0\1\0\0\0" + packed)),
        "many.png": (png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))) * 200, b""),
    }
    files = {name: png(8, 8, 8, 2, pixels, *parts) for name, parts in notes.items()}
    reasons, mebibytes, seconds = measured(repository, tmp_path, files)
    assert reasons == ["broken"] * len(files)
    # Pillow stops a note at 1 MiB and all of a picture's at 64 MiB.
    assert mebibytes < 120 and seconds < 10


def test_a_note_of_ordinary_length_is_no_bomb(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "a fox at night " * 2000, zip=True)
    content = encoded(Image.new("RGB", (9, 9), (9, 8, 7)), "PNG", pnginfo=notes)
    assert read(tmp_path, content) == [9, 8, 7]


def test_the_limit_of_pixels_is_named(tmp_path, monkeypatch):
    good = save(tmp_path / "good.png", "RGB", (1, 2, 3))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 600)
    assert centre(good) == [1, 2, 3]
    monkeypatch.setattr(pictures, "MAX_PIXELS", 599)
    with pytest.raises(UnusablePictureError, match="20 x 30 pixels"):
        load_picture(good, SIZE)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    """A sparse file of a terabyte with the head of a format whose decoder reads all of it."""
    path = tmp_path / "huge.webp"
    path.write_bytes(WHOLE["WEBP"])
    os.truncate(path, 1 << 40)
    assert reason_of(path) == "too_large"


@pytest.mark.parametrize("size", [(200_000, 1), (1, 200_000)])
def test_a_long_strip_is_cut_before_it_is_scaled(tmp_path, size):
    strip = save(tmp_path / "strip.png", "RGB", (5, 6, 7), size=size)
    assert load_picture(strip, 64).shape == (64, 64, 3)
    assert centre(strip) == [5, 6, 7]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "L"])
@pytest.mark.parametrize("size", [(40, 20), (20, 40)])
def test_a_padded_picture_is_whole_in_the_middle_of_white(tmp_path, mode, size):
    dark = {"RGB": (10, 20, 30), "RGBA": (10, 20, 30, 255), "I;16": 0, "L": 9}[mode]
    path = save(tmp_path / "p.png", mode, dark, size=size)
    pixels = load_picture(path, 16, "pad")
    upright = pixels if size[0] > size[1] else pixels.transpose(1, 0, 2)
    assert (upright[:4] == 255).all() and (upright[12:] == 255).all()
    assert (upright[4:12] < 255).all()


def test_a_long_strip_is_scaled_before_it_is_padded(tmp_path):
    strip = save(tmp_path / "strip.png", "RGB", (5, 6, 7), size=(200_000, 1))
    pixels = load_picture(strip, 64, "pad")
    assert (pixels[31] == [5, 6, 7]).all() and (pixels[:31] == 255).all()


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each time costs a pass over the picture."""
    whole = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * count + whole[-2:]


def test_a_jpeg_of_endless_scans_is_too_slow(tmp_path):
    path = tmp_path / "scans.jpg"
    path.write_bytes(with_scans(2000))
    assert reason_of(path) == "too_slow"
    path.write_bytes(with_scans(20))
    assert centre(path) == [0, 0, 0]


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    """Threads meet at the lock: the most that decode at once is counted on the way."""
    for index in range(6):
        save(tmp_path / f"{index}.png", "RGB", (index, 0, 0), size=(40, 40))
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 1000)
    inside, most, lock = 0, 0, threading.Lock()
    as_rgb = pictures._as_rgb

    def counted(square, size):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        result = as_rgb(square, size)
        threading.Event().wait(0.01)
        with lock:
            inside -= 1
        return result

    monkeypatch.setattr(pictures, "_as_rgb", counted)
    with ThreadPoolExecutor(6) as pool:
        pixels, reasons = load_pictures(
            pool, tmp_path.resolve(), [f"{index}.png" for index in range(6)], SIZE
        )
    assert reasons == [None] * 6 and pixels[:, 4, 4, 0].tolist() == list(range(6))
    assert most == 1


# ---------------------------------------------------------------------------- paths


def test_unusable_pictures_have_a_reason(tmp_path):
    good = save(tmp_path / "good.png", "RGB", (1, 2, 3))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "folder.png").mkdir()
    outside = tmp_path.parent / "outside.png"
    save(outside, "RGB", (9, 9, 9))
    (tmp_path / "link.png").symlink_to(outside)
    (tmp_path / "inside.png").symlink_to(good)
    (tmp_path / "gone.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    expected = {
        "good.png": None,
        None: "none",
        "absent.png": "missing",
        "empty.png": "empty",
        "text.png": "broken",
        "cut.png": "broken",
        "folder.png": "not_a_file",
        "": "not_a_file",
        "good.png/below.png": "missing",
        "a" * 300 + ".png": "missing",
        "../outside.png": "outside",
        "/etc/hostname": "outside",
        "link.png": "outside",
        "inside.png": None,
        "gone.png": "missing",
        "circle.png": "broken",
        "nul\0.png": "broken",
    }
    with ThreadPoolExecutor(2) as pool:
        pixels, reasons = load_pictures(pool, tmp_path.resolve(), list(expected), SIZE)
    assert dict(zip(expected, reasons, strict=True)) == expected
    assert set(reasons) - {None} <= set(REASONS)
    good_rows = [reason is None for reason in reasons]
    assert pixels[good_rows].any() and not pixels[[not row for row in good_rows]].any()


def test_a_pipe_or_a_socket_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(tmp_path, os.O_RDONLY)  # a socket's path may be no longer than 108 bytes
        listener.bind(f"/proc/self/fd/{folder}/socket.png")
        os.close(folder)
        assert reason_of(tmp_path / "pipe.png") == "not_a_file"
        assert reason_of(tmp_path / "socket.png") == "not_a_file"


def test_a_device_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert stat.S_ISCHR(os.stat("/dev/zero").st_mode)
    assert reason_of(Path("/dev/zero")) == "not_a_file"


@pytest.fixture
def unprivileged():
    """Root may read everything: be somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_picture_without_permission_is_unreadable(tmp_path, unprivileged):
    if os.geteuid() == 65534:
        # All of tmp_path is root's own: even looking is forbidden.
        assert reason_of(tmp_path / "locked.png") == "unreadable"
        return
    locked = save(tmp_path / "locked.png", "RGB", (1, 2, 3))
    locked.chmod(0)
    assert reason_of(locked) == "unreadable"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_failing_machine_stops_the_job_and_masks_nothing(tmp_path, monkeypatch, number):
    good = save(tmp_path / "good.png", "RGB", (1, 2, 3))

    def fail(*_, **__):
        raise OSError(number, os.strerror(number), str(good))

    monkeypatch.setattr(Image, "open", fail)
    with ThreadPoolExecutor(2) as pool, pytest.raises(OSError, match="good.png"):
        load_pictures(pool, tmp_path.resolve(), ["good.png"] * 3, SIZE)


def test_a_path_is_resolved_below_the_root(tmp_path):
    assert resolve_picture(tmp_path.resolve(), "a/../b.png") == tmp_path.resolve() / "b.png"


# ---------------------------------------------------------------------------- the list


def test_the_list_names_item_file_and_reason_of_every_unusable_picture(tmp_path):
    pictures = [("c", 'c, "new".png', "broken"), ("e", "e.png", "missing")]
    assert write_unusable(tmp_path / "unusable.csv", iter(pictures)) == 2
    assert (tmp_path / "unusable.csv").read_text(encoding="utf-8") == (
        'item_id,file,reason\nc,"c, ""new"".png",broken\ne,e.png,missing\n'
    )
    assert not list(tmp_path.glob(".unusable*"))
    write_unusable(tmp_path / "unusable.csv", [("=1+1", "@x.png", "missing")])
    assert (
        (tmp_path / "unusable.csv").read_text(encoding="utf-8").endswith("'=1+1,'@x.png,missing\n")
    )
