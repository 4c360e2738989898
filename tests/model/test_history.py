"""Similarity histograms between an item and a history: counts by hand, cosines by torch."""

import pytest
import torch

from recsys.errors import UserError
from recsys.model.build import build_ranker
from recsys.model.history import History, SimilarityTiers
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from tests.tiny_world import manifest, vectors


def history(past, rows, present=None):
    past = torch.tensor(past).reshape(-1, 2)
    ones = torch.ones(len(past)) if present is None else torch.tensor(present)
    return History(
        tables={"style": torch.cat([past * ones[:, None], ones[:, None]], dim=1)},
        dims={"style": 2},
        item_T=torch.arange(len(past)),
        row_T=torch.tensor(rows, dtype=torch.int64),
    )


def items(vectors, present=(1.0, 1.0, 1.0)):
    return {"style": (torch.tensor(vectors), torch.tensor(present))}


ITEM = [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
PAST = [[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 5.0]]


def test_histogram_counts_past_items_by_cosine():
    """Row 0: cosines 1, 1, -1; row 1 has no history; row 2: cosine 0."""
    tiers = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4, num_histories=1)
    counts = torch.expm1(tiers([history(PAST, [0, 0, 0, 2])], items(ITEM)))
    expected = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 1, 0]])
    torch.testing.assert_close(counts, expected)


def test_histogram_leaves_out_what_lacks_the_modality():
    tiers = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4, num_histories=1)
    past = history(PAST, [0, 0, 0, 2], [1.0, 0.0, 1.0, 1.0])
    counts = torch.expm1(tiers([past], items(ITEM, [1.0, 1.0, 0.0])))
    torch.testing.assert_close(counts, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]))


def test_cosines_are_the_same_piece_by_piece():
    """More items than one piece holds; the last row of the table is a zero vector."""
    torch.manual_seed(0)
    table = torch.cat([torch.randn(50, 2), torch.ones(50, 1)], dim=1)
    table[49] = 0
    past_items = History(
        tables={"style": table},
        dims={"style": 2},
        item_T=torch.randint(0, 50, (9_000,)),
        row_T=torch.arange(9_000) // 3_000,
    )
    cosine, present = past_items.cosines("style", torch.tensor(ITEM))
    past, item = table[past_items.item_T][:, :2], torch.tensor(ITEM)[past_items.row_T]
    torch.testing.assert_close(cosine, torch.cosine_similarity(past, item, dim=1))
    assert torch.equal(present, (past_items.item_T != 49).float())


def test_batch_without_any_history_gives_zeros():
    tiers = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4, num_histories=1)
    out = tiers([history([], [])], items(ITEM))
    assert out.shape == (3, 4) and not out.any()


def test_every_history_has_a_histogram_of_its_own():
    tiers = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4, num_histories=2)
    likes, dislikes = history(PAST, [0, 0, 0, 2]), history(PAST[:1], [1])
    both = tiers([likes, dislikes], items(ITEM))
    alone = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4, num_histories=1)
    assert both.shape == (3, 8) == (3, tiers.out_dim)
    assert torch.equal(both[:, :4], alone([likes], items(ITEM)))
    assert torch.equal(both[:, 4:], alone([dislikes], items(ITEM)))
    assert both[1, 4:].any() and not both[0, 4:].any()


def test_histogram_of_negatives_without_any_in_the_data_names_the_key_of_the_recipe():
    config = read_run_config({
        "model": {"similarity_tiers": 4, "similarity_histories": ["history", "history_negative"]}
    })
    dims = {name: table.dim for name, table in vectors().items()}
    with pytest.raises(UserError, match=r"names history_negative; .*data.history.negative_length"):
        build_ranker(manifest=manifest(), config=config.model, modality_dims=dims, seed=0)


def test_history_item_by_item_needs_whole_tables(one_process):
    config = read_run_config({
        "model": {"similarity_tiers": 4},
        "plan": {"replicate_modality_bytes": 100},
    })
    with pytest.raises(ValueError, match=r"they take [\d,]+ bytes, .*replicate_modality_bytes=100"):
        plan_and_shard(config=config, manifest=manifest(), vectors=vectors(), env=one_process)
