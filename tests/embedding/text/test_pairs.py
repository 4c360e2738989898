"""Text pairs: no leakage between entities, no false negative in a batch, weights kept."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.config import EmbedConfig
from embedding.holdout import held_out
from embedding.text.config import TextConfig
from embedding.text.pairs import BatchPlan, Pairs, groups_of, read_pairs, split_by_entity
from embedding.text.training_plan import plan_training, why_no_batches
from recsys.config import from_config
from recsys.errors import UserError
from tests import tiny_world

WEIGHTS = {"multilingual": 1.0, "relation": 1.0, "explanation": 1.0}
TEXT = st.sampled_from([f"t{i}" for i in range(30)])
PAIRS = st.lists(
    st.tuples(
        TEXT,
        TEXT,
        st.sampled_from(["multilingual", "relation", "explanation"]),
        st.sampled_from(["", *[f"e{i}" for i in range(12)]]),
        st.sampled_from(["", "ja", "zh"]),
    ),
    max_size=60,
)


def pairs_of(rows):
    return Pairs(*([row[i] for row in rows] for i in range(5)))


def numbered(count, perspective="multilingual", start=0, language=""):
    """Pairs that share nothing."""
    return [
        (f"{perspective[0]}a{i}", f"{perspective[0]}p{i}", perspective, f"e{i}", language)
        for i in range(start, start + count)
    ]


@pytest.mark.parametrize(
    ("rows", "settings", "why"),
    [
        ([], {}, "the data has none; map pairs in the recipe"),
        (numbered(30), {"epochs": 0}, r"encoder.text.epochs=0; set it to 1 or more"),
        (
            [(f"a{i}", f"p{i}", "relation", "one", "") for i in range(5)],
            {},
            "5 of 5, of 1 entities, make no batch: .*Give pairs of more entities",
        ),
        (
            numbered(30),
            {"perspective_weights": {"multilingual": 0.0}},
            r"perspective_weights=.* leave out all 30 to train on",
        ),
        (
            numbered(30, language="ja"),
            {"perspective_weights": {"multilingual": 1.0, "multilingual/ja": 0.0}},
            r"perspective_weights=.* leave out all 30 to train on",
        ),
    ],
)
def test_pairs_that_make_no_batch_are_named_for_what_they_are(rows, settings, why):
    pairs = pairs_of(rows)
    config = TextConfig(**{"held_out_tenths": 0, "epochs": 1} | settings)
    train = split_by_entity(pairs, 0).train
    plan = BatchPlan(
        train,
        epochs=config.epochs,
        batch_size=8,
        weights=config.perspective_weights,
        max_pairs=1000,
        num_ranks=1,
        seed=0,
    )
    assert not len(plan)
    manifest = dataclasses.replace(tiny_world.manifest(), has_pairs=bool(rows))
    assert re.match(
        why, why_no_batches(manifest, config, pairs, train).replace("encoder.text.p", "p")
    )


@given(PAIRS)
def test_no_text_of_a_held_out_entity_is_seen_in_training(rows):
    split = split_by_entity(pairs_of(rows), 5)
    own = set()
    for anchor, positive, perspective, entity, _ in rows:
        if held_out([entity], 5)[0]:
            own |= {anchor} if perspective == "relation" else {anchor, positive}
    seen = set(split.train.anchor) | set(split.train.positive)
    assert not own & seen
    assert not held_out(split.train.entity, 5).any()
    assert held_out(split.held_out.entity, 5).all()
    assert len(split.train) + len(split.held_out) + split.num_left_out == len(rows)


def test_the_other_side_of_a_relation_is_left_out_too():
    names = [f"e{i}" for i in range(50)]
    apart = [name for name, held in zip(names, held_out(names, 5), strict=True) if held][0]
    known = [name for name, held in zip(names, held_out(names, 5), strict=True) if not held][0]
    rows = [
        ("未", "Unseen", "multilingual", apart, "zh"),
        ("Known", "Unseen", "relation", known, ""),
        # The text of another entity, met in a relation of a held-out one, is not its own.
        ("Unseen", "Known", "relation", apart, ""),
        ("知", "Known", "multilingual", known, "zh"),
    ]
    split = split_by_entity(pairs_of(rows), 5)
    assert split.train.anchor == ["知"] and split.held_out.anchor == ["未", "Unseen"]
    assert split.num_left_out == 1 and split.num_entities == 1


def test_a_blank_entity_is_never_held_out():
    split = split_by_entity(pairs_of([("a", "b", "relation", "", "")] * 3), 9)
    assert len(split.train) == 3 and not len(split.held_out)


def plan(pairs, **changes):
    settings = {"epochs": 1, "batch_size": 4, "weights": WEIGHTS, "max_pairs": 10**6}
    settings |= {"num_ranks": 1, "seed": 0, **changes}
    return BatchPlan(pairs, **settings)


@given(PAIRS, st.integers(0, 3))
def test_no_text_and_no_entity_stands_twice_in_a_batch(rows, seed):
    pairs = pairs_of(rows)
    made = plan(pairs, epochs=2, seed=seed)
    batches = list(made)
    assert len(batches) == len(made)
    for batch in batches:
        counts = Counter()
        for row in batch:
            counts.update({"t" + pairs.anchor[row], "t" + pairs.positive[row]})
            counts.update({"e" + pairs.entity[row]} if pairs.entity[row] else set())
        assert len(batch) > 1 and max(counts.values()) == 1
        assert len({pairs.perspective[row] for row in batch}) == 1


def test_weights_say_how_often_an_epoch_passes_over_a_perspective():
    pairs = pairs_of(
        numbered(400) + numbered(80, "relation", 1000) + numbered(200, "explanation", 2000)
    )
    weights = {"multilingual": 0.5, "relation": 3.0, "explanation": 0.0}
    made = plan(pairs, batch_size=8, weights=weights, epochs=3)
    seen = Counter(pairs.perspective[row] for batch in made for row in batch)
    assert seen == {"multilingual": 3 * 200, "relation": 3 * 240}
    assert str(made) == "multilingual 25, relation 30, none of explanation (200 pairs)"
    each = Counter(row for batch in made for row in batch if pairs.perspective[row] == "relation")
    assert set(each.values()) == {9} and len(each) == 80
    smaller = plan(pairs, batch_size=8, weights=weights, max_pairs=220)
    assert smaller.num_batches == {"multilingual": 12, "relation": 15}


def test_a_language_may_have_a_weight_of_its_own():
    pairs = pairs_of(
        numbered(400, language="ja")
        + numbered(80, start=1000, language="zh-Hans")
        + numbered(10, start=2000, language="ko")
        + numbered(40, start=3000, language="fr")
        + numbered(24, "explanation", 4000, "ja")
    )
    weights = {"multilingual": 0.0, "multilingual/ja": 0.1, "multilingual/zh-Hans": 2.0}
    made = plan(pairs, batch_size=8, weights=weights | {"multilingual/ko": 1.0, "explanation": 1.0})
    assert made.num_batches == {
        "multilingual/ja": 5,
        "multilingual/zh-Hans": 20,
        "multilingual/ko": 1,  # a group of its own, though fewer than two batches
        "explanation/ja": 3,  # a weight is of one perspective's language
    }
    assert str(made) == (
        "multilingual/ja 5, multilingual/zh-Hans 20, multilingual/ko 1, explanation 3, none of "
        "multilingual (40 pairs)"
    )
    seen = Counter(pairs.language[row] for batch in made for row in batch)
    assert seen == {"ja": 40 + 24, "zh-Hans": 160, "ko": 8}


def test_the_weight_of_a_language_that_no_pair_has_is_refused(tmp_path):
    rows = numbered(30, language="ja") + numbered(9, "explanation", 50, "en")
    pairs = dataclasses.asdict(pairs_of([*rows, *numbered(9, "relation", 70)]))
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    manifest = dataclasses.replace(tiny_world.manifest(), has_pairs=True)
    config = TextConfig(path="some", epochs=1, perspective_weights=WEIGHTS | {"multilingual/ja": 2})
    plan_training(tmp_path, manifest, config, num_ranks=1, seed=0)
    unknown = {"multilingual/en": 1.0, "multilingual/jp": 1.0}
    config = dataclasses.replace(config, perspective_weights=WEIGHTS | unknown)
    told = (
        "encoder.text.perspective_weights: no text pair is of multilingual/en, multilingual/jp; "
        "expected languages of the data's pairs: multilingual/ja, explanation/en"
    )
    with pytest.raises(UserError, match=f"^{told}$"):
        plan_training(tmp_path, manifest, config, num_ranks=1, seed=0)


def test_epochs_differ_and_a_seed_repeats_them():
    pairs = pairs_of(numbered(64))
    first, second = np.split(np.array([b.tolist() for b in plan(pairs, epochs=2)]), 2)
    assert first.tolist() != second.tolist()
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(64))
    again = [b.tolist() for b in plan(pairs, epochs=2)]
    assert again == [*first.tolist(), *second.tolist()]
    assert again != [b.tolist() for b in plan(pairs, epochs=2, seed=1)]


def test_a_batch_holds_pairs_of_like_length():
    rows = [("x" * (1 + i % 50), f"p{i}", "relation", f"e{i}", "") for i in range(400)]
    pairs = pairs_of(rows)
    pairs = Pairs([f"{i}" + a for i, a in enumerate(pairs.anchor)], *list(vars(pairs).values())[1:])
    spread = [np.ptp([len(pairs.anchor[row]) for row in batch]) for batch in plan(pairs)]
    assert np.median(spread) < 5


def test_languages_with_few_pairs_share_a_group():
    rows = numbered(20, language="ja") + numbered(3, start=20, language="ko")
    rows += numbered(4, start=30, language="fr") + numbered(5, "relation", 50)
    groups = groups_of(pairs_of(rows), least=8)
    assert {name: len(found) for name, found in groups.items()} == {
        "multilingual/ja": 20,
        "multilingual/others": 7,
        "relation": 5,
    }


@pytest.mark.parametrize(("count", "ranks", "size"), [(3, 1, 3), (3, 2, 2), (1, 1, None)])
def test_too_few_pairs_make_one_smaller_batch_or_none(count, ranks, size):
    made = plan(pairs_of(numbered(count)), batch_size=8, num_ranks=ranks)
    assert [len(batch) for batch in made] == ([size] if size else [])
    assert bool(made.left_out) == (size is None)


def test_the_batches_are_the_same_for_one_rank_and_two():
    pairs = pairs_of(numbered(50) + numbered(10, "relation", 60))
    one, two = (plan(pairs, epochs=2, num_ranks=ranks) for ranks in (1, 2))
    assert [b.tolist() for b in one] == [b.tolist() for b in two]


def test_wrong_settings_are_named():
    for key, value, sentence in (
        (
            "perspective_weights",
            {"rumour": 1.0},
            "perspective_weights={'rumour': 1.0}: expected num",
        ),
        (
            "perspective_weights",
            {"rumour/ja": 1.0},
            "perspective_weights={'rumour/ja': 1.0}: expected num",
        ),
        (
            "perspective_weights",
            {"relation": -1.0},
            "perspective_weights={'relation': -1.0}: ",
        ),
        ("pair_batch_size", 1, "pair_batch_size=1: expected 2 or more"),
        ("precision", "half", "precision='half': expected auto, float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"encoder.text.{sentence}")):
            from_config(EmbedConfig, {"encoder": {"text": {key: value}}}, "")


@pytest.mark.parametrize(
    ("asked", "ranks", "size"), [(80, 1, 80), (80, 3, 78), (80, 24, 72), (80, 72, 144), (5, 2, 4)]
)
def test_a_batch_is_rounded_to_what_the_ranks_share_equally(asked, ranks, size):
    made = plan(pairs_of(numbered(300)), batch_size=asked, num_ranks=ranks)
    assert made.batch_size == size and size % ranks == 0
    assert {len(batch) for batch in made} == {size}


def test_a_file_without_its_columns_is_named(tmp_path):
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["b"]}), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"columns perspective, entity, language are missing; the"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.parquet").write_text("no parquet")
    with pytest.raises(
        ValueError, match=r"pairs.parquet: cannot be read .*launch/prepare.py again"
    ):
        read_pairs(tmp_path)


def test_without_a_most_every_pair_is_taken():
    pairs = Pairs(
        [f"a{i}" for i in range(640)],
        [f"b{i}" for i in range(640)],
        ["relation"] * 640,
        [f"e{i}" for i in range(640)],
        [None] * 640,
    )
    everything = {"epochs": 1, "batch_size": 8, "weights": WEIGHTS, "num_ranks": 1, "seed": 0}
    assert BatchPlan(pairs, max_pairs=320, **everything).batches_per_epoch == 40
    assert BatchPlan(pairs, max_pairs=0, **everything).batches_per_epoch == 80
