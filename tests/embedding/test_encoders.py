"""Encoders: families and pretext; small and untrained where that is enough."""

import numpy as np
import pytest
import torch

from embedding.image import ImageEncoder
from embedding.pretext import TagData, tag_targets, train_on_tags
from embedding.text import load_text_encoder

CPU = torch.device("cpu")


def pictures(count, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("backbone", "semantic", "style"),
    [("resnet_tiny", 256, 32), ("resnet18", 512, 64), ("squeezenet1_0", 512, 128)],
)
def test_every_family_gives_two_outputs_in_one_pass(backbone, semantic, style):
    encoder = ImageEncoder(backbone=backbone, weights="none", style_head="gram_max").eval()
    encoder.fit_scaling([pictures(6)])
    out = encoder.encode(pictures(3, seed=1))
    assert out["semantic"].shape == (3, semantic) and out["style"].shape == (3, style)


def test_scaled_outputs_have_mean_zero_and_deviation_one_on_the_sample():
    encoder = ImageEncoder(backbone="resnet_tiny", weights="none", style_head="moments").eval()
    sample = pictures(40)
    encoder.fit_scaling([sample])
    style = encoder.encode(sample)["style"]
    torch.testing.assert_close(style.mean(dim=0), torch.zeros(style.shape[1]), atol=1e-4, rtol=0)
    assert 0.9 < float(style.std(dim=0).median()) < 1.1


def test_gram_pca_keeps_at_most_the_asked_components():
    encoder = ImageEncoder(
        backbone="resnet_tiny", weights="none", style_head="gram_pca", style_dim=5
    ).eval()
    encoder.fit_scaling([pictures(12)])
    assert encoder.encode(pictures(2))["style"].shape == (2, 5)


def test_saved_encoder_gives_the_same_vectors(tmp_path):
    encoder = ImageEncoder(backbone="resnet_tiny", weights="none", style_head="gram_pca").eval()
    encoder.fit_scaling([pictures(12)])
    encoder.save(tmp_path, {"a": 1})
    other = ImageEncoder(backbone="resnet_tiny", weights="none", style_head="gram_pca").eval()
    other.load(tmp_path)
    for name, vectors in encoder.encode(pictures(4)).items():
        assert torch.equal(vectors, other.encode(pictures(4))[name])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="encoder.image.backbone='vgg16': expected resnet_tiny or"):
        ImageEncoder(backbone="vgg16", weights="none", style_head="gram_max")
    with pytest.raises(ValueError, match="style_head='colour': expected one of gram_max"):
        ImageEncoder(backbone="resnet_tiny", weights="none", style_head="colour")
    with pytest.raises(ValueError, match="encoder.image.weights=none.pt: no such file"):
        ImageEncoder(backbone="resnet_tiny", weights="none.pt", style_head="gram_max")


def test_real_squeezenet_weights_load(real_data):
    path = real_data / "weights" / "squeezenet1_0.safetensors"
    encoder = ImageEncoder(backbone="squeezenet1_0", weights=str(path), style_head="gram_max")
    assert sum(p.numel() for p in encoder.body.parameters()) > 700_000


def test_pretext_learns_two_tags():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (160, 32, 32, 3), dtype=np.uint8)
    tags = [["left"] if i % 2 else ["right"] for i in range(160)]
    for i in range(160):
        pixels[i, :, :, 0 if i % 2 else 2] += 150
    targets, names = tag_targets(tags, min_count=5)
    encoder = ImageEncoder(backbone="resnet_tiny", weights="pretext", style_head="gram_max")
    score = train_on_tags(
        encoder,
        TagData(pixels=pixels, targets=targets, tags=names),
        epochs=2,
        learning_rate=3e-3,
        batch_size=16,
        seed=0,
        device=CPU,
        say=lambda text: None,
    )
    assert names == ["left", "right"] and score > 0.95


def test_rare_tags_are_left_out_and_none_is_an_error():
    targets, names = tag_targets([["a", "b"], ["a"], None], min_count=2)
    assert names == ["a"] and targets[:, 0].tolist() == [True, True, False]
    with pytest.raises(ValueError, match="pretext_min_count=5: no tag is on that many"):
        tag_targets([["a"]], min_count=5)


def test_unreachable_text_encoder_is_one_sentence():
    with pytest.raises(ValueError, match="encoder.text.path='/no/such/folder': no Sentence-Trans"):
        load_text_encoder("/no/such/folder", 8, CPU)
