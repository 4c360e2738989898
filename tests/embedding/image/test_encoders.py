"""Encoders: families and pretext; small and untrained where that is enough."""

import typing

import numpy as np
import pytest
import torch

from embedding.image.config import ImageConfig, StyleHead, chosen_style_head
from embedding.image.encoder import ImageEncoder
from embedding.image.heads import fit_heads, measure
from embedding.image.sample import Pictures
from embedding.image.style import STYLE_HEADS, difference_histograms
from embedding.text.encoder import load_text_encoder
from recsys.config import from_config

CPU = torch.device("cpu")


def pictures(count, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


def fitted(backbone="resnet_tiny", count=40, num_views=2, **heads):
    """An untrained network with heads fitted on seeded noise by two hands."""
    torch.manual_seed(0)
    config = {"semantic_head": "pool", "style_head": "contrastive", "style_steps": 5}
    config |= {"semantic_steps": 5} | heads
    encoder = ImageEncoder(ImageConfig(backbone=backbone, **config)).eval()
    artists = ["a" if i % 2 else "b" for i in range(count)]
    sample = Pictures(pixels=pictures(count), artists=artists, contents=[None] * count)
    fit_heads(encoder, sample, num_views=num_views, batch_size=16, seed=0)
    return encoder


@pytest.mark.parametrize(
    ("backbone", "semantic", "style"),
    [
        ("resnet_tiny", 256, 32),
        ("resnet18", 512, 64),
        ("squeezenet1_0", 512, 128),
        ("convnext_tiny", 768, 96),
    ],
)
def test_every_family_gives_two_outputs_in_one_pass(backbone, semantic, style):
    encoder = fitted(backbone, count=6, style_head="gram_max")
    out = encoder.encode(pictures(3, seed=1))
    assert out["semantic"].shape == (3, semantic) and out["style"].shape == (3, style)


HEADS = [("discriminant" if head == "contrastive" else "pool", head) for head in STYLE_HEADS]
HEADS.append(("contrastive", "palette"))


@pytest.mark.parametrize(("semantic_head", "style_head"), HEADS)
def test_outputs_have_mean_zero_and_deviation_one_on_the_sample(semantic_head, style_head):
    encoder = fitted(semantic_head=semantic_head, style_head=style_head, style_dim=8)
    for vectors in encoder.encode(pictures(40)).values():
        torch.testing.assert_close(
            vectors.mean(dim=0), torch.zeros(vectors.shape[1]), atol=1e-4, rtol=0
        )
        assert 0.9 < float(vectors.square().mean().sqrt()) < 1.1


def test_style_dim_is_the_width_of_the_projected_heads():
    for head in ("gram_pca", "palette", "contrastive"):
        encoder = fitted(style_head=head, style_dim=5)
        assert encoder.encode(pictures(2))["style"].shape == (2, 5)


def test_the_style_head_follows_whether_there_are_artists():
    assert chosen_style_head("auto", has_artists=True) == "contrastive"
    assert chosen_style_head("auto", has_artists=False) == "palette"
    assert chosen_style_head("gram_max", has_artists=True) == "gram_max"


@pytest.mark.parametrize(("semantic_head", "style_head"), HEADS)
def test_saved_encoder_gives_the_same_vectors(tmp_path, semantic_head, style_head):
    heads = {"semantic_head": semantic_head, "style_head": style_head}
    encoder = fitted(**heads)
    encoder.save(tmp_path, {"a": 1})
    other = ImageEncoder(ImageConfig(**heads), tmp_path).eval()
    other.load(tmp_path)
    for name, vectors in encoder.encode(pictures(4)).items():
        assert torch.equal(vectors, other.encode(pictures(4))[name])


@pytest.mark.parametrize(
    ("backbone", "blocks", "width"),
    # Channels of the blocks, twice: their means and their deviations; a block may be of both heads.
    [("resnet_tiny", ["layer1", "layer3"], 2 * (32 + 128)), ("squeezenet1_0", ["4"], 2 * 128)],
)
def test_semantics_read_means_and_deviations_of_the_blocks_that_are_named(backbone, blocks, width):
    encoder = fitted(backbone, count=6, style_head="gram_max", semantic_blocks=blocks)
    pixels = torch.from_numpy(pictures(3, seed=1))
    with torch.no_grad():
        _, maps, _ = encoder.features(pixels)
        (joined,) = encoder.statistics(pixels)["semantic"]
    assert encoder.encode(pictures(3, seed=1))["semantic"].shape == (3, width)
    expected = [
        f(dim=(2, 3)) for m in maps for f in (m.mean, lambda dim, m=m: m.std(dim, correction=0))
    ]
    torch.testing.assert_close(joined, torch.cat(expected, dim=1), atol=1e-3, rtol=1e-3)


def test_with_a_grid_semantics_also_read_the_means_of_its_cells():
    blocks = {"style_head": "gram_max", "semantic_blocks": ["layer1"]}
    encoder = fitted(count=6, semantic_grid=2, **blocks)
    pixels = torch.from_numpy(pictures(3, seed=1))
    with torch.no_grad():
        _, (map_BCHW,), _ = encoder.features(pixels)
        (joined,) = encoder.statistics(pixels)["semantic"]
    assert joined.shape == (3, 2 * 32 + 4 * 32)
    half = map_BCHW.shape[2] // 2
    lower_right = map_BCHW[:, :, half:, half:].mean(dim=(2, 3))
    torch.testing.assert_close(joined[:, 2 * 32 :].unflatten(1, (32, 4))[:, :, 3], lower_right)
    assert encoder.encode(pictures(3))["semantic"].shape == (3, 192)


@pytest.mark.parametrize(("head", "count"), [("contrastive", 1), ("palette", 0)])
def test_only_the_contrastive_style_head_reads_differences(tmp_path, head, count):
    heads = {"style_head": head, "semantic_head": "pool"}
    config = heads | {"style_differences": True, "style_networks": 2}
    encoder, without = fitted(count=6, **config), fitted(count=6, **heads)
    pixels = torch.from_numpy(pictures(3, seed=1))
    with torch.no_grad():
        style = encoder.statistics(pixels)["style"]
        plain = without.statistics(pixels)["style"]
    assert len(style) == len(plain) + count
    if count:
        assert torch.equal(style[-1], difference_histograms(pixels))
    encoder.save(tmp_path, {"a": 1})
    other = ImageEncoder(ImageConfig(**config), tmp_path).eval()
    other.load(tmp_path)
    assert torch.equal(
        encoder.encode(pixels.numpy())["style"], other.encode(pixels.numpy())["style"]
    )


def test_a_grid_needs_blocks():
    with pytest.raises(ValueError, match="semantic_grid=3: expected 0, or .* semantic_blocks"):
        from_config(ImageConfig, {"semantic_grid": 3}, "encoder.image")


def test_a_style_head_needs_a_network():
    with pytest.raises(ValueError, match="style_networks=0: expected 1 or more"):
        from_config(ImageConfig, {"style_networks": 0}, "encoder.image")


def test_a_vector_does_not_depend_on_the_batch_it_is_encoded_in():
    encoder = fitted(semantic_head="discriminant", style_head="contrastive")
    together = encoder.encode(pictures(7))
    alone = encoder.encode(pictures(7)[2:3])
    for name in together:
        torch.testing.assert_close(together[name][2:3], alone[name], atol=1e-4, rtol=1e-4)


def test_no_picture_to_fit_on_is_named():
    encoder = ImageEncoder(ImageConfig(style_head="gram_max")).eval()
    nothing = Pictures(pixels=pictures(0), artists=[], contents=[])
    with pytest.raises(ValueError, match="no usable picture to fit the image encoder's heads"):
        fit_heads(encoder, nothing, num_views=1, batch_size=4, seed=0)


def test_hands_are_measured_on_unseen_pictures():
    """Colour is the hand, a bright corner the content: style finds the one."""
    rng = np.random.default_rng(0)
    count = 80
    pixels = rng.integers(0, 40, (count, 32, 32, 3), dtype=np.uint8)
    hands = [i % 4 for i in range(count)]
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [190, 190, 0]], dtype=np.uint8)
    pixels += colours[hands][:, None, None, :]
    for i in range(count):
        pixels[i, i // 4 : i // 4 + 8, 4:12] = 255
    everything = Pictures(
        pixels=pixels,
        artists=[f"hand {h}" for h in hands],
        contents=[f"content {i // 4}" for i in range(count)],
    )
    config = ImageConfig(semantic_head="pool", style_head="contrastive", style_steps=60)
    encoder = ImageEncoder(config).eval()
    fit_heads(encoder, everything, num_views=2, batch_size=16, seed=0)
    known = measure(encoder, everything, held_out_artists=["hand 3"], batch_size=16)
    assert known["style"]["hand"] == {"share": 1.0, "count": 60}
    assert known["style"]["unseen_hand"] == {"share": 1.0, "count": 20}
    assert known["style"]["content"]["share"] < 0.5


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="encoder.image.backbone='vgg16': expected resnet_tiny, a"):
        from_config(ImageConfig, {"backbone": "vgg16"}, "encoder.image")
    with pytest.raises(ValueError, match="encoder.image.backbone='resnet9': Unknown model"):
        ImageEncoder(ImageConfig(backbone="resnet9", style_head="gram_max"))
    with pytest.raises(
        ValueError, match="encoder.image.style_head='colour': expected auto, gram_max"
    ):
        from_config(ImageConfig, {"style_head": "colour"}, "encoder.image")
    assert set(typing.get_args(StyleHead)) == {"auto", *STYLE_HEADS}
    with pytest.raises(ValueError, match="encoder.image.weights=none.pt: no such file"):
        ImageEncoder(ImageConfig(weights="none.pt", style_head="gram_max"))


def test_real_squeezenet_weights_load(real_data):
    path = real_data / "weights" / "squeezenet1_0.safetensors"
    config = ImageConfig(backbone="squeezenet1_0", weights=str(path), style_head="gram_max")
    encoder = ImageEncoder(config)
    assert sum(p.numel() for p in encoder.body.parameters()) > 700_000


def test_unreachable_text_encoder_is_one_sentence():
    with pytest.raises(ValueError, match="encoder.text.path='/no/such/folder': no Sentence-Trans"):
        load_text_encoder("/no/such/folder", 8, CPU)
