"""Style heads: the paper's formula against a slow loop, and what a head must not depend on."""

import pytest
import torch

from embedding.style import STYLE_HEADS, gram, gram_max, moments


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
    torch.testing.assert_close(gram_max(maps), slow_gram_max(maps))


def test_gram_of_a_constant_map_by_hand():
    features = torch.tensor([1.0, 2.0])[None, :, None, None].expand(1, 2, 3, 3)
    assert gram(features).tolist() == [[[1.0, 2.0], [2.0, 4.0]]]


def test_moments_are_means_then_deviations(maps):
    expected = maps[0].mean(dim=(2, 3))
    torch.testing.assert_close(moments(maps[:1])[:, :5], expected)
    deviation = maps[0].flatten(start_dim=2).std(dim=2, correction=0)
    torch.testing.assert_close(moments(maps[:1])[:, 5:], deviation)


@pytest.mark.parametrize("head", sorted(STYLE_HEADS))
def test_style_does_not_depend_on_where_things_are(maps, head):
    """Moving every position of a map elsewhere leaves Gram statistics as they are."""
    moved = [m.flip(2).roll(1, dims=3) for m in maps]
    torch.testing.assert_close(STYLE_HEADS[head](moved), STYLE_HEADS[head](maps))
