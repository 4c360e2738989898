"""Models of timm as the image encoder's network: the library's smallest ones, with random weights."""

import shutil

import numpy as np
import pytest
import torch

from embedding.image import timm_backbone
from embedding.image.backbone import build_backbone
from embedding.image.config import ImageConfig
from embedding.image.encoder import ImageEncoder
from embedding.image.heads import fit_heads
from embedding.image.sample import Pictures
from recsys.config import from_config

timm = pytest.importorskip("timm", reason="timm is not installed (requirements-timm.txt)")
SIZE = 64


def pictures(count, seed=0):
    shape = (count, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def config(backbone="timm/test_efficientnet", **changes):
    heads = {"semantic_head": "pool", "style_head": "moments", "size": SIZE}
    return ImageConfig(backbone=backbone, **heads | changes)


def fitted(settings):
    torch.manual_seed(0)
    encoder = ImageEncoder(settings).eval()
    sample = Pictures(pixels=pictures(8), artists=[None] * 8, contents=[None] * 8)
    fit_heads(encoder, sample, num_views=1, batch_size=8, seed=0)
    return encoder


@pytest.mark.parametrize(
    ("backbone", "semantic", "maps"),
    [
        # A CNN; a transformer of fixed size, whose first quarter of six blocks ends with the first.
        ("timm/test_efficientnet", 256, [(16, 32), (24, 16), (32, 8)]),
        ("timm/test_vit", 64, [(64, 4)]),
    ],
)
def test_a_model_gives_pooled_features_and_maps_of_early_stages(backbone, semantic, maps):
    network = build_backbone(config(backbone))
    network.network.eval()
    pooled, _, found = network.features(torch.zeros(2, 3, SIZE, SIZE))
    assert pooled.shape == (2, semantic)
    assert [tuple(m.shape) for m in found] == [(2, width, side, side) for width, side in maps]


def test_semantics_are_the_features_before_the_models_own_classifier():
    torch.manual_seed(0)
    encoder = ImageEncoder(config("timm/test_vit")).eval()
    model = encoder.body
    x = torch.from_numpy(pictures(2)).permute(0, 3, 1, 2).float() / 255
    data = timm.data.resolve_model_data_config(model)
    x = (x - torch.tensor(data["mean"])[:, None, None]) / torch.tensor(data["std"])[:, None, None]
    with torch.no_grad():
        expected = model(x)
        found, *_ = encoder.features(torch.from_numpy(pictures(2)))
    assert data["mean"] == (0.5, 0.5, 0.5) and model.num_classes == 0
    torch.testing.assert_close(found, expected)


def test_a_network_that_reads_blue_first_sees_the_colours_swapped():
    torch.manual_seed(0)
    rgb = ImageEncoder(config()).eval()
    torch.manual_seed(0)
    bgr = ImageEncoder(config(channels="bgr")).eval()
    swapped = torch.from_numpy(pictures(2)[..., ::-1].copy())
    with torch.no_grad():
        found, expected = bgr.features(torch.from_numpy(pictures(2))), rgb.features(swapped)
    torch.testing.assert_close(found[0], expected[0])


def test_a_file_of_the_whole_model_gives_its_weights_without_the_classifier(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    whole = timm.create_model("test_efficientnet", num_classes=7)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    network = build_backbone(config(weights=str(tmp_path / "w.safetensors"))).network
    for name, values in network.state_dict().items():
        assert torch.equal(values, whole.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"encoder.image.weights=\S+: Error(.|\n)+Missing key"):
        build_backbone(config("timm/test_vit", weights=str(tmp_path / "w.safetensors")))


def test_weights_of_an_installed_package_are_found_and_nothing_of_it_is_run(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was run')")
    torch.manual_seed(1)
    whole = timm.create_model("test_efficientnet")
    torch.save(whole.state_dict(), package / "w.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = build_backbone(config(weights="package:some_weights/w.pth")).network
    assert torch.equal(network.conv_stem.weight, whole.conv_stem.weight)
    for wrong in ("package:some_weights/v.pth", "package:none_such/w.pth"):
        with pytest.raises(ValueError, match=f"encoder.image.weights={wrong}: no such file"):
            build_backbone(config(weights=wrong))
    with pytest.raises(ValueError, match="expected package:NAME/PATH"):
        build_backbone(config(weights="package:some_weights/../w.pth"))


def test_a_folder_as_hubs_have_it_is_a_model_and_the_finished_encoder_needs_it_no_more(tmp_path):
    """The folder has arguments of the architecture, which its name does not tell."""
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=5, depth=3)
    timm.models.save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    settings = config(f"timm/local-dir:{tmp_path / 'hub'}", weights="timm")
    encoder = fitted(settings)
    assert torch.equal(encoder.body.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)
    encoder.save(tmp_path / "made", {})
    shutil.rmtree(tmp_path / "hub")
    again = ImageEncoder(settings, tmp_path / "made").eval()
    again.load(tmp_path / "made")
    for name, vectors in encoder.encode(pictures(3, seed=1)).items():
        assert torch.equal(vectors, again.encode(pictures(3, seed=1))[name])
    assert not list((tmp_path / "made" / "timm").glob("*.safetensors")), "weights are stored once"


def test_a_network_of_fixed_size_is_made_to_read_the_size_asked_for_or_named(capsys, tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_vit3")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = ImageEncoder(config("timm/test_vit3", weights=str(tmp_path / "w.pth"))).eval()
    assert (model.pos_embed.shape[1], encoder.body.pos_embed.shape[1]) == (1 + 10 * 10, 1 + 4 * 4)
    assert (
        "note: timm/test_vit3 was trained with pictures of 160 pixels, encoder.image.size=64"
        in (capsys.readouterr().out)
    )
    with pytest.raises(ValueError, match="encoder.image.size=50: timm/test_vit cannot read it"):
        build_backbone(config("timm/test_vit", size=50))


def test_stages_are_chosen_by_number():
    assert build_backbone(config(style_blocks=["3", "1"])).style_stages == [1, 3]
    for key in ("style_blocks", "semantic_blocks"):
        with pytest.raises(ValueError, match=rf"{key}: '5' is no stage of timm/.*from 0 to 4"):
            build_backbone(config(**{key: ["5"]}))


def test_semantic_stages_are_read_beside_those_of_style():
    network = build_backbone(config(semantic_blocks=["4", "2"]))
    network.network.eval()
    with torch.no_grad():
        _, semantic, style = network.features(torch.zeros(2, 3, SIZE, SIZE))
    assert [m.shape[1] for m in style] == [16, 24, 32]
    assert [m.shape[1:3] for m in semantic] == [(32, 8), (64, 2)]
    assert torch.equal(semantic[0], style[2])


def test_a_model_without_intermediate_features_is_named(monkeypatch):
    monkeypatch.delattr(timm.models.EfficientNet, "forward_intermediates")
    with pytest.raises(
        ValueError,
        match=r"backbone=timm/test_efficientnet: a model .* without forward_intermediates",
    ):
        build_backbone(config())


def test_unknown_models_other_libraries_weights_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(ValueError, match="backbone=timm/no_such_model: no model of timm, hub or"):
        build_backbone(config("timm/no_such_model"))
    with pytest.raises(
        ValueError, match="encoder.image.weights=torchvision: expected timm, none or"
    ):
        from_config(
            ImageConfig, {"backbone": "timm/test_vit", "weights": "torchvision"}, "encoder.image"
        )
    with pytest.raises(
        ValueError, match="encoder.image.weights=timm: expected torchvision, none or"
    ):
        from_config(ImageConfig, {"weights": "timm"}, "encoder.image")
    monkeypatch.setattr(timm_backbone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="needs the package timm: pip install -r requirements-timm"
    ):
        build_backbone(config())
