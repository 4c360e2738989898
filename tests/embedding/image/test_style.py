"""Style statistics: the paper's formula against a slow loop, and what they must not depend on."""

import pytest
import torch

from embedding.image.style import (
    STYLE_HEADS,
    difference_histograms,
    gram,
    gram_max,
    grid_means,
    moments,
    palette,
    palettes,
)

PIXELS = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)


def slow_gram_max(maps):
    """Four loops, as the formula reads."""
    batch, width = maps[0].shape[:2]
    style = torch.full((batch, width), -float("inf"))
    for b in range(batch):
        for features in maps:
            f = features[b].reshape(width, -1)
            for d in range(width):
                for c in range(width):
                    value = (f[c] * f[d]).sum() / f.shape[1]
                    style[b, d] = max(style[b, d], value)
    return style


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 5, 4, 3, generator=generator),
        torch.randn(2, 5, 2, 2, generator=generator),
    ]


def test_gram_max_equals_the_slow_formula(maps):
    torch.testing.assert_close(gram_max(PIXELS, maps)[0], slow_gram_max(maps))


def test_gram_of_a_constant_map_by_hand():
    features = torch.tensor([1.0, 2.0])[None, :, None, None].expand(1, 2, 3, 3)
    assert gram(features).tolist() == [[[1.0, 2.0], [2.0, 4.0]]]


def test_moments_are_means_then_deviations(maps):
    expected = maps[0].mean(dim=(2, 3))
    torch.testing.assert_close(moments(PIXELS, maps[:1])[0][:, :5], expected)
    deviation = maps[0].flatten(start_dim=2).std(dim=2, correction=0)
    torch.testing.assert_close(moments(PIXELS, maps[:1])[0][:, 5:], deviation)


def test_palette_counts_colours_by_hand():
    pixels = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    pixels[0, :2] = torch.tensor([255, 0, 16], dtype=torch.uint8)  # bins 15, 0, 1
    shares = palette(pixels, [])[0][0].square()
    assert shares[[0, 15 * 256 + 1]].tolist() == pytest.approx([0.5, 0.5])
    assert float(shares.sum()) == pytest.approx(1)


def test_a_large_picture_has_the_palette_of_the_small_one():
    small = torch.randint(0, 255, (1, 96, 96, 3), generator=torch.Generator().manual_seed(0))
    large = small.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    torch.testing.assert_close(palette(large, [])[0], palette(small, [])[0])


def test_the_coarse_palette_forgives_a_shade():
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    pixels[1] = 16  # the next fine bin, the same coarse one
    fine, coarse = palettes(pixels, [])
    assert fine.shape == (2, 4096) and coarse.shape == (2, 512)
    assert (fine[0] * fine[1]).sum() == 0 and float((coarse[0] * coarse[1]).sum()) == 1
    assert coarse[0, 0] == 1


def test_differences_of_near_pixels_are_counted_by_hand():
    """One white column in a black picture of 10 pixels a side."""
    pixels = torch.zeros(1, 10, 10, 3, dtype=torch.uint8)
    pixels[:, :, 5] = 255
    share_KAC = difference_histograms(pixels)[0].square().unflatten(0, (3, 2, 3, 21))
    for index, distance in enumerate((1, 2, 4)):
        right, down = share_KAC[index, 0], share_KAC[index, 1]
        # Of 10 - d neighbours to the right one is lighter and one darker; white and black are no hues.
        one = 1 / (10 - distance)
        assert right[0, [0, 10, 20]].tolist() == pytest.approx([one, 1 - 2 * one, one])
        assert right[1:, 10].tolist() == pytest.approx([1, 1])
        assert down[:, 10].tolist() == pytest.approx([1, 1, 1])


def test_differences_are_those_of_the_same_drawing_at_twice_the_size():
    small = torch.randint(0, 255, (1, 96, 96, 3), generator=torch.Generator().manual_seed(0))
    small = small.to(torch.uint8)
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(difference_histograms(large), difference_histograms(small))


def test_differences_do_not_depend_on_where_a_drawing_is():
    pixels = torch.full((1, 40, 40, 3), 255, dtype=torch.uint8)
    pixels[:, 8:20, 8:20] = torch.randint(0, 255, (12, 12, 3), dtype=torch.uint8)
    moved = pixels.roll((9, 5), dims=(1, 2))
    torch.testing.assert_close(difference_histograms(moved), difference_histograms(pixels))


def test_grid_means_by_hand():
    map_BCHW = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert grid_means([map_BCHW], 2)[0].tolist() == [[2.5, 4.5, 10.5, 12.5]]


@pytest.mark.parametrize("head", sorted(STYLE_HEADS))
def test_style_does_not_depend_on_where_things_are(maps, head):
    """Moving every position elsewhere leaves the statistics of a picture as they are."""
    pixels = torch.randint(0, 255, (2, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    moved = [m.flip(2).roll(1, dims=3) for m in maps]
    statistics = STYLE_HEADS[head].statistics
    for here, there in zip(
        statistics(pixels, maps), statistics(pixels.flip(1).roll(3, dims=2), moved), strict=True
    ):
        torch.testing.assert_close(here, there)
