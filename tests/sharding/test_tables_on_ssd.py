"""Tables on SSD are planned, their memories and times by hand arithmetic, and no job trains them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torchrec.distributed.batched_embedding_kernel import (
    PartiallyMaterializedTensor,
    SSDTableBatchedEmbeddingBags,
)

from recsys.report.plan import rank_columns, table_columns
from recsys.run.assembly import build_plannable
from recsys.run.planning import read_cluster
from recsys.runtime.env import Env
from recsys.sharding.apply import check_matches
from recsys.sharding.plan import read_plan, write_plan
from recsys.sharding.shortage import DoesNotFitError
from tests.sharding.test_planner import GPU, ClusterConfig, planned, table

ON_SSD = {"kernel": "key_value", "sharding": "row_wise"}
MEMTABLES = 4 * 2**31
SMALL = ClusterConfig(hosts=1, accelerator_memory_gib=2, host_memory_gib=256, ssd_gib=1000, **GPU)
ROWS = {"user_id": 64_000_000, "item_id": 100_000, "tags": 1_000}


def on_ssd(cluster=SMALL, rows=ROWS, **keys):
    """64 million users of 64 fp32 values on SSD: 256 bytes a row."""
    tables = {"user_id": {**ON_SSD, **keys}}
    return planned(cluster, rows, model={"embedding_dim": 64}, tables=tables)


def test_two_billion_rows_take_of_every_memory_what_hand_arithmetic_says():
    """2e9 / 64 rows of 512 bytes a rank, a fifth of them cached: 6,250,000 / 32 sets, rounded down."""
    rows = {"user_id": 2_000_000_000, "item_id": 500_000_000, "tags": 10_000_000}
    dims = {"semantic": 1024, "style": 256, "text": 512}
    model, tables = {"embedding_dim": 128}, {"user_id": {"kernel": "key_value"}}
    everything = planned(read_cluster("h100_8x8"), rows, dims, model=model, tables=tables)
    plan = everything.plan()
    user, values = table(plan, "user_id"), 2_000_000_000 * 512
    assert user.kernel == "key_value" and user.cache_load_factor == 0.2
    assert user.sharding == "row_wise" and user.num_ranks == 64
    slots = 195_312 * 32
    assert user.weight_bytes == user.ssd_bytes == values == 1_024_000_000_000
    assert user.cache_bytes == 64 * slots * (512 + 16)
    assert user.host_bytes == 64 * (2 * slots * (512 + 12) + MEMTABLES)
    assert user.optimizer_bytes == 2_000_000_000 * 4
    assert f"{values / 1e9:,.1f} GB of them on SSD" in plan.summary.verdict

    for rank in plan.ranks:
        assert rank.ssd_bytes == values // 64
        capacity = rank.hbm_capacity_bytes
        assert rank.headroom_bytes == capacity - int(0.15 * capacity) - rank.hbm_bytes >= 0
    held = sum(t.weight_bytes + t.optimizer_bytes + t.buffer_bytes for t in plan.tables) - values
    beside = 64 * (plan.dense.bytes_per_rank + plan.ranks[0].array_bytes)
    assert sum(rank.hbm_bytes for rank in plan.ranks) == held + beside
    # 1,024 ids a rank, four fifths of them missed: a block of 4,096 bytes read, a row of 512 written;
    # 40 GB a second for 8 ranks.
    for rank in plan.ranks:
        assert rank.ssd_ms == pytest.approx(1024 * 0.8 * (4096 + 512) / 5e6)
        assert rank.lookup_ms > rank.ssd_ms
    assert plan.summary.critical_path.lookup_ms == max(rank.lookup_ms for rank in plan.ranks)


def test_misses_take_the_time_of_the_bandwidth_and_wide_rows_that_of_their_bytes():
    before = on_ssd().plan()
    (waited,) = {rank.ssd_ms for rank in before.ranks}
    assert waited == pytest.approx(1024 * 0.8 * (4096 + 256) / (5e6 / 8))
    quicker = on_ssd(dataclasses.replace(SMALL, ssd_gb_per_second=50)).plan()
    assert quicker.ranks[0].ssd_ms == pytest.approx(waited / 10)
    others = before.ranks[0].lookup_ms - waited
    assert quicker.ranks[0].lookup_ms - quicker.ranks[0].ssd_ms == pytest.approx(others)
    half_cached = on_ssd(cache_load_factor=0.5, width=4).plan()
    assert half_cached.ranks[0].ssd_ms == pytest.approx(1024 * 0.5 * (4096 + 16) / (5e6 / 8))
    rows = {**ROWS, "user_id": 1_000_000}
    wide = on_ssd(dataclasses.replace(SMALL, accelerator_memory_gib=20), rows, width=2048).plan()
    assert wide.ranks[0].ssd_ms == pytest.approx(1024 * 0.8 * (8192 + 8192) / (5e6 / 8))


def test_a_piece_of_columns_misses_every_id():
    wide = {"width": 128, "sharding": "column_wise", "ranks": [3, 5]}
    plan = on_ssd(rows={**ROWS, "user_id": 4_000_000}, **wide).plan()
    waiting = [rank.rank for rank in plan.ranks if rank.ssd_ms]
    assert waiting == [3, 5]
    assert plan.ranks[3].ssd_ms == pytest.approx(8 * 1024 * 0.8 * (4096 + 256) / (5e6 / 8))


def test_a_table_larger_than_all_accelerators_fits_on_ssd():
    """64e6 rows x (256 + 4) bytes are 16.6 GB; 8 ranks have 0.85 x 17.2 GB."""
    with pytest.raises(DoesNotFitError, match="table 'user_id'.* too much"):
        on_ssd(kernel="fused").plan()
    plan = on_ssd().plan()
    assert plan.on_ssd == ["user_id"]
    assert {rank.ssd_bytes for rank in plan.ranks} == {8_000_000 * 256}


def test_what_does_not_fit_names_the_memory_and_the_bytes():
    with pytest.raises(DoesNotFitError, match=r"table 'user_id'.* too much") as raised:
        on_ssd(cache_load_factor=1).plan()  # 17.4 GB of cache
    assert "SSD" not in str(raised.value)
    little = dataclasses.replace(SMALL, ssd_gib=16)  # 17.2 GB, 0.85 of which are 14.6
    sentence = (
        r"do not fit in SSD: they take 16.4 GB of it, and 8 rank\(s\) have 1.8 GB each; the largest is "
        "table 'user_id' with 16.4 GB"
    )
    with pytest.raises(DoesNotFitError, match=sentence) as raised:
        on_ssd(little).plan()
    assert not raised.value.of_host_memory
    # Uncut, it is larger than the 19.5 GB that 8 ranks have together divided by 8.
    enough = dataclasses.replace(SMALL, ssd_gib=21.4)
    sentence = (
        "the largest piece of table 'user_id' takes 16.4 GB of it, and a rank has 2.4 GB: 13.9 GB"
    )
    with pytest.raises(DoesNotFitError, match=sentence):
        on_ssd(enough, cache_load_factor=0.01, sharding="table_wise").plan()
    host = dataclasses.replace(SMALL, host_memory_gib=64)  # memtables of 8 ranks and buffers
    with pytest.raises(
        DoesNotFitError, match="do not fit in main memory: .*'user_id' with 75.6 GB"
    ):
        on_ssd(host).plan()


REFUSED = {
    "no SSD": (
        {"user_id": ON_SSD},
        dataclasses.replace(SMALL, ssd_gib=0),
        "user_id.kernel=key_value: cluster 'custom' has no SSD; give cluster.ssd_gib",
    ),
    "adam": (
        {"user_id": {**ON_SSD, "optimizer": {"name": "adam"}}},
        SMALL,
        "its optimizer is adam; .* use tables.user_id.optimizer.name=rowwise_adagrad",
    ),
    "sgd": ({"user_id": {**ON_SSD, "optimizer": {"name": "sgd"}}}, SMALL, "SSD has no sgd"),
    "frozen": (
        {"modality_text": {"kernel": "key_value"}},
        SMALL,
        "tables.modality_text.kernel=key_value: its vectors are frozen",
    ),
    "replicated": (
        {"user_id": {"kernel": "key_value", "sharding": ["row_wise", "data_parallel"]}},
        SMALL,
        "tables.user_id.sharding=data_parallel with kernel=key_value",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_table_on_ssd_can_have_is_refused(case):
    tables, cluster, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        planned(cluster, dims={"text": 8}, tables=tables).plan()


def test_a_small_table_on_ssd_has_the_optimizer_that_it_can_have():
    plan = planned(SMALL, tables={"tags": {"kernel": "key_value"}}).plan()
    assert table(plan, "tags").optimizer == "rowwise_adagrad"
    assert table(plan, "item_id").optimizer == "adam"


def test_a_piece_without_rows_has_a_cache_of_one_set_and_the_rest_in_main_memory():
    """Nine rows over 8 ranks are pieces of 2, 2, 2, 2, 1 and none."""
    plan = planned(SMALL, {**ROWS, "user_id": 9}, tables={"user_id": ON_SSD}).plan()
    user = table(plan, "user_id")
    assert user.ssd_bytes == 9 * 16 * 4
    assert user.cache_bytes == 8 * 32 * (64 + 16)
    assert user.host_bytes == 8 * (2 * 32 * (64 + 12) + MEMTABLES)
    assert user.buffer_bytes < 1e7, "of the exchange and the cache alone"


def test_columns_of_ssd_are_shown_where_a_table_is_on_it(tmp_path):
    plan, without = on_ssd().plan(), planned(SMALL).plan()
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    shown = {name: text(table(plan, "user_id")) for name, text in table_columns(plan).items()}
    # 8 x 50,000 sets of 32 slots: 272 bytes of cache, 2 x 268 of buffers, and the memtables.
    assert (shown["HBM cache"], shown["DDR"], shown["SSD"]) == ("3.48 GB", "75.6 GB", "16.4 GB")
    shown = {name: text(plan.ranks[0]) for name, text in rank_columns(plan).items()}
    assert (shown["SSD"], shown["of them SSD"]) == ("2.05 GB", "5.704")
    assert not any("SSD" in name for name in (*table_columns(without), *rank_columns(without)))


def test_a_plan_with_a_table_on_ssd_is_not_trained():
    made = on_ssd()
    _, tables = build_plannable(
        config=made.config, manifest=made.manifest, modality_dims={}, device_type="cuda"
    )
    device = torch.device("cuda", 0)
    env = Env(rank=0, world_size=8, local_rank=0, local_world_size=8, device=device)
    sentence = "plan.json does not match this job: it has table 'user_id' on SSD, which is planned"
    with pytest.raises(ValueError, match=sentence):
        check_matches(made.plan(), tables=tables, env=env, source="plan.json")


def test_the_reasons_not_to_train_tables_on_ssd_still_hold():
    """Of the installed FBGEMM: where one falls away, docs/ids.md is out of date."""
    stored = PartiallyMaterializedTensor(torch.zeros(2, 4))
    stored.copy_(torch.ones(2, 4))
    assert not stored.full_tensor().any(), "a write to the values is dropped without an error"
    # Rows that a validation pushes out of the cache are not written: neither call reads its kernel.
    validating = SimpleNamespace(training=False)
    assert SSDTableBatchedEmbeddingBags.flush(validating) is None
    assert SSDTableBatchedEmbeddingBags.evict(validating, *[None] * 7) is None
    for name in ("reset_cache_states", "set_optimizer_step"):
        assert not hasattr(SSDTableBatchedEmbeddingBags, name)
