"""Tag pretext: learns, stops, and goes on after it was cut off as if nothing had happened."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding.encoder_folder import Stamp
from embedding.image import pretext
from embedding.image.augmentation import random_crops
from embedding.image.config import ImageConfig
from embedding.image.encoder import ImageEncoder
from embedding.image.pretext import PretextConfig, train_on_tags
from embedding.image.pretext_checkpoint import PretextState
from embedding.image.pretext_data import PictureCache, TagData, split_groups, tag_targets
from recsys.runtime.env import Env
from tests.processes import run_worker

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
STAMP = Stamp(
    settings=ImageConfig(), path_key="weights", weights=None, trained_on={"items": "a"}, seed=0
)
WORKER = Path(__file__).with_name("pretext_worker.py")


def coloured_pictures():
    """Reddish pictures tagged left, bluish ones right."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (160, 32, 32, 3), dtype=np.uint8)
    for i in range(160):
        pixels[i, :, :, 0 if i % 2 else 2] += 150
    targets, names = tag_targets([["left"] if i % 2 else ["right"] for i in range(160)], 5)
    assert names == ["left", "right"]
    return TagData(
        pixels=pixels, rows=np.arange(160), targets=targets, tags=names, groups=np.arange(160)
    )


@pytest.fixture(scope="module")
def two_colours():
    return coloured_pictures()


def train(data, folder, *, epochs, patience=0, learning_rate=3e-3, env=ALONE, stamp=STAMP):
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageConfig(style_head="gram_max"))
    score = train_on_tags(
        encoder,
        data,
        PretextConfig(
            epochs=epochs, patience=patience, learning_rate=learning_rate, batch_size=16, seed=0
        ),
        env=env,
        folder=folder,
        stamp=stamp,
    )
    return encoder, score


def test_it_learns_two_tags(two_colours, tmp_path):
    _, score = train(two_colours, tmp_path, epochs=2)
    assert score > 0.95


def test_cut_off_training_ends_with_the_same_weights(two_colours, tmp_path, monkeypatch, capsys):
    whole, _ = train(two_colours, tmp_path / "whole", epochs=3)

    class CutOffError(Exception):
        pass

    saved = pretext.Checkpoint.save

    def save_and_die(self, state):
        saved(self, state)
        if state.epoch == 2:
            raise CutOffError

    with monkeypatch.context() as patch, pytest.raises(CutOffError):
        patch.setattr(pretext.Checkpoint, "save", save_and_die)
        train(two_colours, tmp_path / "cut", epochs=3)
    capsys.readouterr()
    # The file that training started from has moved.
    moved = dataclasses.replace(STAMP, settings=ImageConfig(weights="elsewhere"), weights="0" * 16)
    begun = dataclasses.replace(STAMP, settings=ImageConfig(weights="here"), weights="0" * 16)
    stored = torch.load(tmp_path / "cut" / "pretext.pt", weights_only=True)
    torch.save({**stored, "stamp": json.dumps(begun.content())}, tmp_path / "cut" / "pretext.pt")
    resumed, _ = train(two_colours, tmp_path / "cut", epochs=3, stamp=moved)
    assert "goes on after epoch 2" in capsys.readouterr().out
    for name, value in whole.body.state_dict().items():
        assert torch.equal(value, resumed.body.state_dict()[name]), name


def whole_pictures(pixels, generator, *, min_side):
    """In place of random_crops: ranks draw other crops than one process."""
    return pixels


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_ranks_train_the_network_that_one_trains(tmp_path, monkeypatch, ranks):
    """Statistics of the batches, too: they are those of all ranks' pictures. Steps are small, so that
    AdamW does not make much of what rounding makes of a gradient near 0."""
    run_worker(WORKER, tmp_path, ranks=ranks, seconds=120)
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    monkeypatch.setattr(pretext, "random_crops", whole_pictures)
    monkeypatch.setattr(pretext, "computes_in_bf16", lambda device: False)
    alone, _ = train(coloured_pictures(), tmp_path / "alone", epochs=2, learning_rate=1e-5)
    assert any("running_mean" in name for name in first)
    for name, value in alone.body.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=2e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"trained_on": {"items": "b"}}, {"settings": ImageConfig(size=32)}]
)
def test_checkpoint_of_another_stamp_is_not_continued(two_colours, tmp_path, capsys, changed):
    train(two_colours, tmp_path, epochs=1)
    train(two_colours, tmp_path, epochs=1, stamp=dataclasses.replace(STAMP, **changed))
    assert "goes on" not in capsys.readouterr().out


def test_patience_ends_training_and_keeps_the_best_pass():
    state = PretextState()
    for score, weight in ((0.5, 1.0), (0.7, 2.0), (0.6, 3.0), (0.7, 4.0)):
        state.note(score, {"w": torch.tensor(weight)})
    assert (state.epoch, state.best, state.waited) == (4, 0.7, 2)
    assert state.best_weights == {"w": torch.tensor(2.0)}
    assert state.is_stalled(2) and not state.is_stalled(3) and not state.is_stalled(0)


def test_no_content_is_trained_on_and_validated_on():
    groups = np.repeat(np.arange(40), 5)
    train_rows, valid_rows = split_groups(groups, seed=0)
    assert len(train_rows) + len(valid_rows) == 200 and len(valid_rows) == 20
    assert not set(groups[train_rows]) & set(groups[valid_rows])


def test_too_few_pictures_are_named(two_colours, tmp_path):
    few = TagData(
        pixels=two_colours.pixels,
        rows=np.arange(8),
        targets=two_colours.targets[:8],
        tags=two_colours.tags,
        groups=np.arange(8),
    )
    with pytest.raises(ValueError, match="pretext_batch_size=16: 7 training and 1 validation"):
        train(few, tmp_path, epochs=1)


def test_diverged_training_is_named(two_colours, tmp_path):
    with pytest.raises(FloatingPointError, match="lower encoder.image.pretext_learning_rate"):
        train(two_colours, tmp_path, epochs=3, learning_rate=1e30)


def test_rare_tags_are_left_out_and_none_is_an_error():
    targets, names = tag_targets([["a", "b"], ["a"], None], min_count=2)
    assert names == ["a"] and targets[:, 0].tolist() == [True, True, False]
    with pytest.raises(ValueError, match="pretext_min_count=5: no tag is on that many"):
        tag_targets([["a"]], min_count=5)


def test_crops_change_neither_colours_nor_size():
    pixels = torch.zeros(6, 20, 20, 3, dtype=torch.uint8)
    pixels[:] = torch.tensor([10, 200, 30], dtype=torch.uint8)
    crops = random_crops(pixels, torch.Generator().manual_seed(0), min_side=0.5)
    assert torch.equal(crops, pixels)


def test_crops_lie_within_the_picture_and_half_are_mirrored():
    ramp = torch.arange(64, dtype=torch.uint8)[None, None, :, None].expand(200, 64, 64, 3) * 4
    crops = random_crops(ramp, torch.Generator().manual_seed(0), min_side=0.6)[:, 32, :, 0].float()
    rising = crops[:, -1] > crops[:, 0]
    assert 60 < rising.sum() < 140
    width = (crops[:, -1] - crops[:, 0]).abs() / 252
    assert width.min() > 0.5 and width.max() <= 1


def test_a_full_disk_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="lower encoder.image.pretext_max_pictures"):
        PictureCache(tmp_path / "x", 10**12, 224).create()
    assert not list((tmp_path / "x").iterdir())
