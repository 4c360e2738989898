"""Stamps of encoders: content decides, not paths; an unchanged encoder needs nothing but its folder."""

import dataclasses
import json

import pytest
import torch

from embedding.encoder_folder import Stamp, fingerprint, stamp_of
from embedding.image.config import ImageConfig
from embedding.image.heads import fit_heads
from embedding.image.making import ImageMaker
from embedding.image.sample import Pictures
from embedding.making import open_encoder
from embedding.text.config import TextConfig
from recsys.runtime.env import Env
from recsys.schema import Manifest
from tests.embedding.image.test_encoders import pictures

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
MANIFEST = Manifest(
    name="t",
    tables=(),
    features=(),
    splits={},
    num_user_rows=0,
    num_item_rows=9,
    image_root=".",
    has_images=True,
    checksums={"items.parquet": "1"},
)


def of_old_main(config, weights=None):
    """config.json as versions before the content of a text model counted wrote it."""
    known = {"trained_on": {"items.parquet": "1", "pairs.parquet": None}, "seed": 0}
    if weights is not None:
        known["weights"] = weights
    return json.loads(json.dumps({"settings": dataclasses.asdict(config), **known}))


def stamp(config, path_key="weights", **changed):
    return dataclasses.replace(stamp_of(config, path_key, MANIFEST, 0), **changed)


def test_the_content_of_the_weights_decides_not_their_path(tmp_path):
    here, there, other = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c"))
    here.write_bytes(b"weights")
    there.write_bytes(b"weights")
    other.write_bytes(b"other weights")
    made = stamp(ImageConfig(weights=str(here))).content()
    assert made["weights"] == fingerprint(there) == fingerprint(here)
    assert stamp(ImageConfig(weights=str(there))).fits(made)
    assert not stamp(ImageConfig(weights=str(other))).fits(made)
    assert not stamp(ImageConfig(weights="none")).fits(made)
    here.unlink()
    # Nothing can be hashed: the path it was made from is as good as the file, another one is not.
    assert stamp(ImageConfig(weights=str(here))).fits(made)
    assert not stamp(ImageConfig(weights=str(tmp_path / "typo"))).fits(made)


def test_stamps_of_earlier_versions_count_as_unchanged(tmp_path):
    file, folder = tmp_path / "w.safetensors", tmp_path / "model"
    file.write_bytes(b"weights")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    image, text = ImageConfig(weights=str(file)), TextConfig(path=str(folder))
    made = of_old_main(image, fingerprint(file))
    assert stamp(image).fits(made)
    del made["settings"]["fit_views"]  # a setting that came later, at its default
    assert stamp(image).fits(made)
    assert not stamp(dataclasses.replace(image, fit_views=3)).fits(made)
    assert stamp(ImageConfig()).fits(of_old_main(ImageConfig(), "none"))
    assert stamp(text, "path").fits(of_old_main(text))
    assert stamp(text, "path").continues(of_old_main(text))
    assert not stamp(dataclasses.replace(text, path="hub/name"), "path").fits(of_old_main(text))
    # What new stamps note: another model under the same path.
    made = stamp(text, "path").content()
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert not stamp(text, "path").fits(made)


def test_a_name_is_never_taken_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scratch", "none"):
        (tmp_path / name).mkdir()
    assert stamp(TextConfig(path="scratch"), "path").weights is None
    assert stamp(ImageConfig(weights="none")).weights is None


def test_other_data_is_another_training_but_the_same_encoder():
    made = stamp(ImageConfig()).content()
    asked = stamp(ImageConfig(), trained_on={"items.parquet": "2", "pairs.parquet": None})
    assert asked.fits(made) and not asked.continues(made)
    assert not stamp(ImageConfig(), seed=1).fits(made)
    assert not stamp(ImageConfig(), more={"pairs_a_step": 78}).continues(made)


class Maker(ImageMaker):
    """An image encoder without training, which counts how often it is made."""

    num_made = 0

    def make(self, stamp: Stamp):
        self.num_made += 1
        encoder = self.build().eval()
        known = Pictures(pixels=pictures(8, 32), artists=[None] * 8, contents=[None] * 8)
        fit_heads(encoder, known, num_views=1, batch_size=8, seed=0)
        encoder.save(self.folder, stamp.content())
        return {"made": self.num_made}


@pytest.fixture
def opened(tmp_path):
    """Open the encoder of a workspace from a weights file; (was it made, its vectors, revision)."""

    def run(weights, retrain=False, manifest=MANIFEST):
        config = ImageConfig(size=32, style_head="moments", semantic_head="pool", weights=weights)
        maker = Maker(tmp_path / "w", manifest, config, seed=0, env=ALONE)
        encoder = open_encoder(maker, retrain=retrain)
        vectors = encoder.extractor.encode(pictures(3, 32))["style"].tobytes()
        return maker.num_made, vectors, encoder.made_by.revision, encoder.description

    return run


def test_an_unchanged_encoder_loads_without_the_weights_it_started_from(tmp_path, opened):
    from embedding.image.torchvision_backbone import tiny_resnet

    here, there = tmp_path / "here.pt", tmp_path / "there.pt"
    torch.save(tiny_resnet().state_dict(), here)
    made, *first = opened(str(here))
    assert made == 1
    here.rename(there)
    assert opened(str(there)) == (0, first[0], first[1], first[2].replace("here", "there"))
    assert opened(str(here)) == (0, *first), "the file is not there"
    there.unlink()
    assert opened(str(here)) == (0, *first)
    with pytest.raises(ValueError, match=r"encoder.image.weights=\S+typo.pt: no such file"):
        opened(str(tmp_path / "typo.pt"))
    assert opened(str(here)) == (0, *first), "a wrong path costs nothing"


def test_an_encoder_of_earlier_data_is_kept_unless_it_is_to_be_trained_anew(opened):
    assert opened("none")[0] == 1
    later = dataclasses.replace(MANIFEST, checksums={"items.parquet": "2"})
    made, *_, description = opened("none", manifest=later)
    assert made == 0 and "kept as trained on earlier data (retrain=true" in description
    assert opened("none", retrain=True)[0] == 0, "of the same data"
    assert opened("none", retrain=True, manifest=later)[0] == 1
    assert "kept" not in opened("none", manifest=later)[3]
