"""Samples of a catalogue are drawn, never cut off its front, where the most popular items are."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedding.features.catalogue import Catalogue, drawn
from embedding.holdout import held_out
from embedding.image import heads, sample
from embedding.image.config import ImageConfig
from embedding.image.heads import fit_heads
from embedding.image.sample import Pictures
from embedding.text import making
from embedding.text.config import TextConfig
from embedding.text.making import TextMaker
from embedding.text.pairs import Pairs, readable, split_by_entity
from embedding.text.retrieval import retrieval_tasks
from recsys.runtime.env import Env
from recsys.schema import Manifest

NUM_ITEMS = 400


class StopError(Exception):
    """What was asked has been seen."""


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5))
def test_drawn_positions_are_distinct_ascending_and_as_many_as_asked(num_values, most, seed):
    places = drawn(num_values, most, seed)
    assert len(places) == min(num_values, most)
    assert (np.diff(places) > 0).all() and set(places) <= set(range(num_values))


def is_spread(places) -> bool:
    """40 of 400: the mean of a fair draw lies within 199.5 +- 4 x 17.3, that of a front cut at 19.5."""
    return len(places) == 40 and 130 < np.mean(places) < 269


def test_reductions_are_fitted_on_pictures_from_all_over_the_sample(monkeypatch):
    class Encoder:
        def fit_reductions(self, pixels, batch_size):
            self.seen = pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]
            raise StopError

    numbers = np.arange(NUM_ITEMS)
    pixels = np.zeros((NUM_ITEMS, 1, 1, 3), dtype=np.int64)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers // 256, numbers % 256
    encoder = Encoder()
    monkeypatch.setattr(heads, "_REDUCTION_PICTURES", 40)
    nothing = [None] * NUM_ITEMS
    with pytest.raises(StopError):
        fit_heads(
            encoder,
            Pictures(pixels=pixels, artists=nothing, contents=nothing),
            num_views=1,
            batch_size=8,
            seed=0,
        )
    assert is_spread(encoder.seen)


def test_queries_come_from_all_over_the_pairs():
    count = range(NUM_ITEMS)
    pairs = Pairs(
        anchor=[str(i) for i in count],
        positive=[f"p{i}" for i in count],
        perspective=["explanation"] * NUM_ITEMS,
        entity=[f"e{i}" for i in count],
        language=["en"] * NUM_ITEMS,
    )
    (task,) = retrieval_tasks(pairs, most_queries=40)
    assert is_spread([int(query) for query in task.queries])


@pytest.fixture
def workspace(tmp_path):
    """Items in the order of their rows; row 0 is nobody."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    rows = [None, *(str(i) for i in range(NUM_ITEMS))]
    columns = {"item_row": range(NUM_ITEMS + 1), "item_id": rows, "image": rows, "text": rows}
    nothing = pa.nulls(NUM_ITEMS + 1, pa.string())
    table = pa.table(columns | {"artist": nothing, "content": nothing})
    pq.write_table(table, folder / "items.parquet")
    return tmp_path


MANIFEST = Manifest(
    name="m",
    tables=(),
    features=(),
    splits={},
    num_user_rows=0,
    num_item_rows=NUM_ITEMS + 1,
    history=None,
    image_root=".",
    has_images=True,
    has_texts=True,
    items_checksum="",
)
ENV = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def test_unseen_pictures_are_measured_from_all_over_the_catalogue(workspace, monkeypatch):
    monkeypatch.setattr(sample, "MEASURED_PICTURES", 20)
    config = ImageConfig(held_out_tenths=5)
    chosen = sample.choose_pictures(Catalogue(workspace / "prepared"), config, seed=0)
    unseen = np.flatnonzero(held_out([str(i) for i in range(NUM_ITEMS)], 5))
    places = np.searchsorted(unseen, chosen.measured)
    # 20 of some 200: a front cut has mean 9.5, a fair draw 100 +- 13.
    assert len(places) == 20 and 48 < np.mean(places) < 152
    assert not np.isin(chosen.learned, unseen).any()
    assert len(chosen.learned) == NUM_ITEMS - len(unseen)


def test_the_scaling_of_texts_is_fitted_all_over_the_catalogue(workspace, monkeypatch):
    seen = []

    class Encoder:
        def __init__(self, *_):
            pass

        def fit_scaling(self, texts):
            seen.extend(texts)
            raise StopError

    maker = TextMaker(workspace, MANIFEST, TextConfig(path="a"), seed=0, env=ENV)
    monkeypatch.setattr(making, "TextEncoder", Encoder)
    monkeypatch.setattr(maker, "_start", lambda *_: None)
    monkeypatch.setattr(making, "load_text_encoder", lambda *_: None)
    monkeypatch.setattr(making, "fine_tune", lambda *_, **__: [])
    monkeypatch.setattr(making, "_SCALING_TEXTS", 40)
    with pytest.raises(StopError):
        maker.make(maker.stamp())
    assert is_spread([int(text) for text in seen])


def test_the_tokenizer_reads_no_text_of_a_held_out_entity():
    ids = [str(i) for i in range(100)]
    is_held = held_out(ids, 3)
    # An item is an entity by its id; a caption's entity has a name of its own.
    captions = [f"caption {i}" for i in range(100)]
    themes = [f"theme {i}" for i in range(100)]
    pairs = Pairs(
        anchor=captions,
        positive=[f"words {i}" for i in range(100)],
        perspective=["explanation"] * 100,
        entity=themes,
        language=[""] * 100,
    )
    split = split_by_entity(pairs, 3)
    texts = [f"title {i}. caption {i}" for i in range(99)] + [None]
    found = readable(ids, texts, split, 3)
    theme_is_held = held_out(themes, 3)
    assert found == [
        text for i, text in enumerate(texts) if text and not is_held[i] and not theme_is_held[i]
    ]
    assert 30 < len(found) < 70
