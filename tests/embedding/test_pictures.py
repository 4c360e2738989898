"""Pictures of every kind: handled, or masked with a reason; never a crash."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from embedding import pictures
from embedding.pictures import UnusablePictureError, load_picture, load_pictures


def save(path, mode, colour, size=(20, 30), **options):
    Image.new(mode, size, colour).save(path, **options)
    return path


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
    pixels = load_picture(save(tmp_path / name, mode, colour), 8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert pixels[4, 4].tolist() == list(expected)


def test_cmyk_palette_sixteen_bit_and_animation_are_read(tmp_path):
    save(tmp_path / "cmyk.jpg", "CMYK", (0, 0, 0, 0))
    assert load_picture(tmp_path / "cmyk.jpg", 8).mean() > 250
    Image.new("RGB", (20, 20), (10, 200, 30)).quantize(4).save(tmp_path / "palette.gif")
    assert (
        abs(load_picture(tmp_path / "palette.gif", 8)[4, 4].astype(int) - (10, 200, 30)).max() < 8
    )
    deep = np.full((20, 20), 32768, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert 126 <= load_picture(tmp_path / "deep.png", 8)[4, 4, 0] <= 129
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    first = load_picture(tmp_path / "moving.gif", 8)[4, 4]
    assert first[0] > 200 and first[2] < 60


def test_unusable_pictures_have_a_reason(tmp_path, monkeypatch):
    good = save(tmp_path / "good.png", "RGB", (1, 2, 3))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    outside = tmp_path.parent / "outside.png"
    save(outside, "RGB", (9, 9, 9))
    (tmp_path / "link.png").symlink_to(outside)
    names = ["good.png", None, "absent.png", "empty.png", "text.png", "cut.png"]
    names += ["../outside.png", "/etc/hostname", "link.png", "nul\0.png"]
    with ThreadPoolExecutor(2) as pool:
        pixels, reasons = load_pictures(pool, tmp_path.resolve(), names, 8)
    assert reasons == [
        None,
        "none",
        "missing",
        "empty",
        "broken",
        "broken",
        "outside",
        "outside",
        "outside",
        "broken",
    ]
    assert pixels[0].any() and not pixels[1:].any()
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(UnusablePictureError, match="20 x 30 pixels"):
        load_picture(good, 8)


def test_a_long_strip_is_cut_before_it_is_scaled(tmp_path):
    strip = save(tmp_path / "strip.png", "RGB", (5, 6, 7), size=(200_000, 1))
    assert load_picture(strip, 64).shape == (64, 64, 3)
