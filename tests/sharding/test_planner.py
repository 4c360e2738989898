"""Plans for clusters that need not exist: verdicts by hand arithmetic, constraints, suggestions.

Everything here runs in this process: no process group, no GPU, no storage for the tables.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from recsys.config import from_config
from recsys.data.planned_manifest import planned_manifest, with_rows
from recsys.data.recipe import FeatureRecipe, InteractionsRecipe, ItemsRecipe, Recipe
from recsys.report.plan import print_plan
from recsys.run.assembly import build_plannable
from recsys.run.config import read_run_config
from recsys.run.planning import Planned, rate_clusters, read_cluster, smallest_and_fastest
from recsys.run.suggestions import half_precision_exchange, suggest
from recsys.runtime.env import Env
from recsys.sharding.apply import check_matches
from recsys.sharding.cluster import GIB, ClusterConfig, local_cluster
from recsys.sharding.plan import TABLES_PATH, read_plan, sharding_plan, write_plan
from recsys.sharding.shortage import DoesNotFitError
from tests import tiny_world

ROWS = {"item_id": 5_000, "user_id": 40_000, "tags": 1_000}
GPU = {"device": "cuda", "accelerators_per_host": 8, "batch_size_per_rank": 1024}
H100 = ClusterConfig(name="h100", hosts=8, accelerator_memory_gib=79.1, host_memory_gib=2048, **GPU)
EXACT = {"forward_communication": "fp32", "backward_communication": "fp32"}
HALF = {"forward_communication": "fp16", "backward_communication": "bf16"}


def planned(cluster=None, rows=None, dims=None, **sections):
    """A small catalogue with tags and a history, on two processes unless told otherwise."""
    recipe = Recipe(
        name="catalogue",
        interactions=InteractionsRecipe(file="log.csv", user_id="user", item_id="item"),
        items=ItemsRecipe(
            image="picture", text=["title"], features={"tags": FeatureRecipe(kind="id_list")}
        ),
    )
    return Planned(
        config=read_run_config(sections),
        manifest=planned_manifest(recipe, rows or ROWS),
        modality_dims=dims or {},
        cluster=cluster or ClusterConfig(accelerators_per_host=2),
    )


def table(plan, name):
    (found,) = [table for table in plan.tables if table.table == name]
    return found


def billions(**sections):
    rows = {"user_id": 2_000_000_000, "item_id": 500_000_000, "tags": 10_000_000}
    dims = {"semantic": 1024, "style": 256, "text": 512}
    return planned(H100, rows, dims, model={"embedding_dim": 128}, **sections)


def test_billions_of_rows_fit_64_gpus_as_hand_arithmetic_says():
    """Values: (2e9 + 5e8 + 1e7) rows x 128 x 4 bytes; state of row-wise Adagrad: 4 bytes a row;
    frozen: 5e8 rows x (1032 + 264 + 520) x 2 bytes, a mask column and padding included."""
    values = 2_510_000_000 * 128 * 4
    state = 2_510_000_000 * 4
    frozen = 500_000_000 * (1032 + 264 + 520) * 2
    plan = billions().plan()
    summary = plan.summary
    assert summary.fits
    assert summary.table_bytes == values + state + frozen == 3_111_160_000_000
    assert sum(r.weight_bytes for r in plan.ranks) == values
    assert sum(r.frozen_bytes for r in plan.ranks) == frozen
    # 48.6 GB a rank of 84.9 GB, of which 15 % stay free; buffers are a small part of it.
    assert 64 * 48.6e9 < sum(rank.hbm_bytes for rank in plan.ranks) < 1.1 * 64 * 48.6e9
    for rank in plan.ranks:
        capacity = int(79.1 * GIB)
        assert rank.headroom_bytes == capacity - int(0.15 * capacity) - rank.hbm_bytes >= 0
    assert "3,111.2 GB over 64 rank(s)" in summary.verdict
    assert table(plan, "user_id").sharding == "row_wise"


def test_vectors_of_billions_cross_the_network_in_less_than_five_milliseconds():
    """Cut by rows over all ranks, every rank reduces a whole vector of every row of the batch."""
    by_rows = {
        f"modality_{name}": {"sharding": "row_wise"} for name in ("semantic", "style", "text")
    }
    model = {"embedding_dim": 128, "interest_modalities": ["semantic", "style", "text"]}
    cluster = read_cluster("h100_8x8")
    everything = dataclasses.replace(billions(), cluster=cluster)
    exact = {"plan": EXACT}
    by_default, free, cut_by_rows = (
        dataclasses.replace(everything, config=read_run_config({"model": model, **sections})).plan()
        for sections in ({}, exact, exact | {"tables": by_rows})
    )
    assert free.summary.critical_path_ms < 5 < cut_by_rows.summary.critical_path_ms / 3
    assert by_default.summary.critical_path_ms < 2.5
    for table_plan in free.tables:
        if table_plan.frozen:
            assert table_plan.sharding == "grid_shard"
            same = table(cut_by_rows, table_plan.table)
            assert 7 * table_plan.output_bytes_per_step < same.output_bytes_per_step


@pytest.mark.parametrize(
    ("device", "num_ranks", "given", "taken"),
    [
        ("cuda", 8, {}, ("fp16", "bf16")),
        ("cuda", 2, {}, ("fp16", "bf16")),
        ("cuda", 1, {}, ("fp32", "fp32")),
        ("cpu", 1, {}, ("fp32", "fp32")),
        ("cpu", 8, {}, ("fp32", "fp32")),
        ("cuda", 8, EXACT, ("fp32", "fp32")),
        ("cuda", 8, {"forward_communication": "fp32"}, ("fp32", "bf16")),
        ("cuda", 8, {"backward_communication": "fp32"}, ("fp16", "fp32")),
        ("cuda", 1, HALF, ("fp16", "bf16")),
        ("cpu", 8, {"backward_communication": "bf16"}, ("fp32", "bf16")),
    ],
)
def test_several_gpus_exchange_in_half_precision_and_everything_else_exactly(
    device, num_ranks, given, taken
):
    accelerators = {"accelerator_memory_gib": 79.1} if device == "cuda" else {}
    cluster = ClusterConfig(device=device, accelerators_per_host=num_ranks, **accelerators)
    plan = planned(cluster, plan=given).plan()
    assert (plan.communication.forward, plan.communication.backward) == taken


def test_a_plan_says_in_one_line_in_which_precision_its_ranks_exchange(capsys):
    print_plan(planned(H100).plan())
    assert "exchange between ranks: vectors in fp16, their gradients in bf16" in (
        capsys.readouterr().out.splitlines()
    )
    print_plan(planned(ClusterConfig()).plan())
    assert "exchange" not in capsys.readouterr().out


@pytest.mark.slow
def test_half_precision_is_suggested_where_the_network_is_waited_for():
    cluster = read_cluster("h100_8x8")
    by_default = dataclasses.replace(billions(), cluster=cluster)
    assert half_precision_exchange(by_default, by_default.plan()) is None
    everything = dataclasses.replace(billions(plan=EXACT), cluster=cluster)
    before = everything.plan()
    suggestion = half_precision_exchange(everything, before)
    after = dataclasses.replace(billions(plan=HALF), cluster=cluster)
    assert suggestion.keys == " ".join(f"plan.{key}={value}" for key, value in HALF.items())
    assert after.plan() == by_default.plan()
    assert f"{after.plan().summary.critical_path_ms:.3f} ms instead of" in suggestion.verdict
    assert half_precision_exchange(after, after.plan()) is None
    alone = planned(ClusterConfig())
    assert half_precision_exchange(alone, alone.plan()) is None
    keys = EXACT | {"backward_communication": "fp16"}
    chosen = dataclasses.replace(billions(plan=keys), cluster=cluster)
    suggestion = half_precision_exchange(chosen, chosen.plan())
    assert suggestion.keys == "plan.forward_communication=fp16", "a choice of the user stays"
    assert suggestion.change == "send vectors in half precision"


def test_ids_of_a_piece_of_rows_travel_to_it_alone():
    """TorchRec's own estimate sends all ids to each of them: 64 times too many for row_wise."""
    rows = {"user_id": 2_000_000_000, "item_id": 1_000, "tags": 1_000}
    keys = {"plan": {"feature_lengths": {"user_id": 1000.0}}}
    tables = {"user_id": {"sharding": "row_wise", "width": 4}}
    plan = planned(
        dataclasses.replace(H100, inter_host_gb_per_second=50), rows, tables=tables, **keys
    )
    user = table(plan.plan(), "user_id")
    ids_ms = user.input_bytes_per_step / 64 / 50e6
    assert 64 * ids_ms < user.communication_ms < 64 * ids_ms * 1.3


def test_small_tables_are_replicated_where_many_ranks_would_wait_for_the_one_that_holds_them():
    """One rank would get the ids of 65,536 rows and send as many vectors; a gradient is 230 KB."""
    rows = {"user_id": 3_601, "item_id": 1_001, "tags": 21}
    free = planned(H100, rows)
    whole = {name: {"sharding": "table_wise"} for name in rows}
    by_rank = dataclasses.replace(free, config=read_run_config({"tables": whole})).plan()
    plan = free.plan()
    assert {t.sharding for t in plan.tables} == {"data_parallel"}
    assert plan.summary.time_imbalance < 2 < by_rank.summary.time_imbalance
    assert plan.summary.critical_path_ms < by_rank.summary.critical_path_ms


def test_a_small_table_of_many_rows_stays_whole():
    """Its gradient costs every rank more than its ids cost the rank that holds it."""
    rows = {"user_id": 99_000, "item_id": 1_001, "tags": 21}
    plan = planned(H100, rows).plan()
    assert table(plan, "user_id").sharding == "table_wise"
    assert table(plan, "item_id").sharding == "data_parallel"


@pytest.mark.parametrize("kind", ["row_wise", "table_row_wise"])
def test_no_rank_of_a_cpu_gets_a_piece_without_rows(kind):
    """Over four ranks 10 rows are pieces of 3, 3, 3 and 1, and 9 rows of 3, 3, 3 and none."""
    cluster = ClusterConfig(hosts=1 if kind == "row_wise" else 2, accelerators_per_host=4)

    def plan_of(num_rows, kinds):
        sections = {"tables": {"tags": {"sharding": kinds}}}
        return table(planned(cluster, {**ROWS, "tags": num_rows}, **sections).plan(), "tags")

    assert plan_of(10, [kind]).sharding == kind
    assert plan_of(9, [kind, "table_wise"]).sharding == "table_wise"
    sentence = f"tables.tags.sharding={kind}: leaves a rank none of the 9 rows, .* use table_wise"
    with pytest.raises(ValueError, match=sentence):
        plan_of(9, [kind])


def test_what_does_not_fit_names_the_table_and_by_how_much():
    one_host = dataclasses.replace(H100, hosts=1)
    with pytest.raises(DoesNotFitError) as raised:
        dataclasses.replace(billions(), cluster=one_host).plan()
    # A share of the semantic vectors: 5e8 / 8 rows x 1032 x 2 bytes = 129 GB, of 84.9 GB x 0.85 = 72.2
    # GB. One of user_id, 2e9 / 8 rows x (512 + 4) bytes, is as large; its buffers are not.
    assert raised.value.table == "modality_semantic"
    assert "takes 129.0 GB" in str(raised.value) and "72.2 GB of a rank's 84.9 GB" in str(
        raised.value
    )


def test_every_suggestion_is_a_plan_that_fits():
    small = ClusterConfig(hosts=1, accelerator_memory_gib=2.0, host_memory_gib=256, **GPU)
    rows = {"user_id": 60_000_000, "item_id": 100_000, "tags": 1_000}
    tight = planned(small, rows, model={"embedding_dim": 64})
    # 60e6 rows x (64 x 4 + 4) bytes = 15.6 GB; 8 ranks x 2 GiB x 0.85 = 14.6 GB.
    with pytest.raises(DoesNotFitError, match="table 'user_id'.* too much") as raised:
        tight.plan()
    found = {suggestion.keys: suggestion for suggestion in suggest(tight, raised.value)}
    assert set(found) == {"tables.user_id.precision=fp16", "cluster.hosts=2"}
    assert all("fits custom" in suggestion.verdict for suggestion in found.values())
    halved = dataclasses.replace(
        tight,
        config=read_run_config({
            "model": {"embedding_dim": 64},
            "tables": {"user_id": {"precision": "fp16"}},
        }),
    ).plan()
    assert table(halved, "user_id").weight_bytes == 60_000_000 * 64 * 2


ROW_WISE = {
    "table_wise": (
        {"tables": {"user_id": {"sharding": "table_wise"}}},
        "tables.user_id.sharding=row_wise",
    ),
    "pinned": (
        {"tables": {"user_id": {"ranks": [0]}}},
        "tables.user_id.sharding=row_wise tables.user_id.ranks=null",
    ),
    "penalty": (
        {
            "tables": {"user_id": {"optimizer": {"name": "sgd", "l2": 0.1}}},
            "optim": {"small_table_rows": 10**9},
        },
        "tables.user_id.sharding=row_wise tables.user_id.optimizer.name=rowwise_adagrad "
        "tables.user_id.optimizer.l2=0",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ROW_WISE)
def test_a_table_that_must_not_be_cut_is_suggested_to_be_cut_by_rows(case):
    """40 million rows x (64 x 4 + 4) bytes are 10.4 GB: a share of 8, and too much for one rank."""
    sections, keys = ROW_WISE[case]
    small = ClusterConfig(hosts=1, accelerator_memory_gib=4.0, host_memory_gib=256, **GPU)
    rows = {"user_id": 40_000_000, "item_id": 100_000, "tags": 1_000}
    tight = planned(small, rows, model={"embedding_dim": 64}, **sections)
    with pytest.raises(DoesNotFitError, match="table 'user_id' does not fit") as raised:
        tight.plan()
    suggestions = list(suggest(tight, raised.value))
    assert suggestions[0].keys == keys and "fits custom" in suggestions[0].verdict


def test_smallest_cluster_comes_first_and_one_too_small_says_why():
    too_small = ClusterConfig(name="tiny", host_memory_gib=0.01)
    large = ClusterConfig(name="large", accelerators_per_host=2)
    rated = rate_clusters(planned(rows=ROWS | {"user_id": 400_000}), [large, too_small])
    assert [line.cluster.name for line in rated] == ["tiny", "large"]
    assert rated[0].plan is None and "does not fit" in rated[0].verdict
    assert rated[1].plan.summary.fits
    assert smallest_and_fastest(rated) == ("large", "large")
    with pytest.raises(ValueError, match="the tables fit none of tiny"):
        smallest_and_fastest(rated[:1])


def test_bytes_on_cpu_count_state_and_gradients_of_replicated_tables():
    plan = planned().plan()
    user = table(plan, "user_id")
    assert user.sharding == "data_parallel" and user.optimizer == "adam"
    copies, values = 2, 40_000 * 16 * 4
    assert user.weight_bytes == copies * values
    assert user.optimizer_bytes == copies * 2 * values
    assert user.gradient_bytes == copies * values
    assert [rank.gradient_bytes for rank in plan.ranks] == [46_000 * 16 * 4] * 2


LARGE = {"user_id": 10_000_000, "item_id": 1_000, "tags": 500}
LARGE_BYTES = 10_000_000 * (16 + 1) * 4
"""Of user_id: 16 fp32 values a row, and row-wise Adagrad's one."""
SMALL_BYTES = (1_000 + 500) * 16 * 4 * 3
"""Of the other two: fp32 values and Adam's two averages."""


def on_cpu(host_memory_gib, num_ranks=1, **train):
    cluster = ClusterConfig(accelerators_per_host=num_ranks, host_memory_gib=host_memory_gib)
    return planned(cluster, LARGE, train=train, dims={"text": 127})


def test_copies_that_checkpoints_are_written_from_are_counted_once_for_every_table():
    """What is cut is copied where it lies; replicated tables by rank 0; frozen ones not at all."""
    with_copies, without = (
        on_cpu(16, 2, save_in_background=asked).plan() for asked in (True, False)
    )
    held = [[rank.ddr_bytes for rank in plan.ranks] for plan in (with_copies, without)]
    copied = [rank.copy_bytes for rank in with_copies.ranks]
    assert [both - alone for both, alone in zip(*held, strict=True)] == copied
    assert [rank.copy_bytes for rank in without.ranks] == [0, 0]
    assert table(with_copies, "user_id").sharding == "row_wise"
    assert table(with_copies, "item_id").sharding == "data_parallel"
    assert copied == [LARGE_BYTES // 2 + SMALL_BYTES, LARGE_BYTES // 2]


def test_tables_that_fit_once_and_not_twice_ask_for_saving_in_the_foreground():
    """0.85 GiB are 913 MB: enough for 680 MB, and not for 1,360 MB."""
    tight = on_cpu(1.0)
    with pytest.raises(DoesNotFitError, match=r"680.\d MB .* train.save_in_background=false"):
        tight.plan()
    plan = on_cpu(1.0, save_in_background=False).plan()
    (rank,) = plan.ranks
    frozen = 1_000 * 128 * 2
    expected = LARGE_BYTES + SMALL_BYTES + SMALL_BYTES // 3 + frozen + rank.dense_bytes
    assert rank.ddr_bytes == expected + rank.buffer_bytes


def test_copies_of_tables_on_accelerators_need_host_memory():
    """60 million rows of 65 fp32 values are 15.6 GB: 8 GiB of main memory do not hold them."""
    rows = {"user_id": 60_000_000, "item_id": 100_000, "tags": 1_000}
    host = ClusterConfig(hosts=1, accelerator_memory_gib=79.1, host_memory_gib=8, **GPU)
    model = {"embedding_dim": 64}
    with pytest.raises(
        DoesNotFitError, match=r"main memory: .* 15.6 GB\. .*cluster.host_memory_gib"
    ):
        planned(host, rows, model=model).plan()
    larger = dataclasses.replace(host, host_memory_gib=32)
    copied = [rank.copy_bytes for rank in planned(larger, rows, model=model).plan().ranks]
    assert 15.6e9 <= sum(copied) < 15.7e9


def test_arrays_of_the_data_that_a_gpu_keeps_are_counted():
    """By hand: tags of 5,000 items, 4 each as planned; histories of 40,000 users, 50 items each."""
    arrays = 5_000 * (8 + 4 * 4) + 40_000 * (8 + 4 * 50)
    with_arrays, without, too_small = (
        planned(H100, train={"arrays_on_gpu_bytes": limit}).plan()
        for limit in (4_000_000_000, 0, arrays - 1)
    )
    for rank, other in zip(with_arrays.ranks, without.ranks, strict=True):
        assert rank.array_bytes == arrays and other.array_bytes == 0
        assert rank.hbm_bytes == other.hbm_bytes + arrays
        assert rank.headroom_bytes == other.headroom_bytes - arrays
    assert too_small == without
    assert {rank.array_bytes for rank in planned().plan().ranks} == {0}


def test_the_estimate_of_a_job_on_a_gpu_has_the_dense_rate_of_a_gpu(monkeypatch):
    """With a CPU's, the step of 25 ms that an H200 took was estimated at 2.5 seconds."""

    class Card:
        total_memory = 140 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    facts = {"rank": 0, "world_size": 1, "local_rank": 0, "local_world_size": 1}
    clusters = {
        kind: local_cluster(Env(device=torch.device(kind, 0), **facts)) for kind in ("cpu", "cuda")
    }
    assert clusters["cpu"].dense_tflops == ClusterConfig().dense_tflops
    assert clusters["cuda"].dense_tflops == 1000 * ClusterConfig().dense_tflops
    assert clusters["cuda"].accelerator_memory_gib == 140


def test_small_frozen_tables_are_replicated_and_large_ones_cut():
    dims = {"text": 127}
    whole = table(planned(dims=dims).plan(), "modality_text")
    assert whole.sharding == "replicated" and whole.weight_bytes == 2 * 5_000 * 128 * 2
    cut = planned(dims=dims, plan={"replicate_modality_bytes": 0}).plan()
    assert table(cut, "modality_text").weight_bytes == 5_000 * 128 * 2
    assert table(cut, "modality_text").frozen


def test_pinned_ranks_hold_their_table():
    rowwise = {"table": {"name": "rowwise_adagrad"}}
    pinned = {"tags": {"ranks": [1]}, "user_id": {"ranks": [1, 0]}}
    plan = planned(optim=rowwise, tables=pinned).plan()
    ranks = {name: [] for name in ("tags", "user_id")}
    for shard in plan.shards:
        if shard.table in ranks:
            ranks[shard.table].append(shard.rank)
    assert ranks == {"tags": [1], "user_id": [1, 0]}


def test_cached_tables_lie_in_main_memory_and_half_communication_halves_the_traffic():
    keys = {"sharding": "row_wise"}
    plain = planned(H100, plan=EXACT, tables={"user_id": keys}).plan()
    keys |= {"kernel": "fused_uvm_caching", "cache_load_factor": 0.25}
    cached = planned(H100, tables={"user_id": keys}).plan()
    before, after = table(plain, "user_id"), table(cached, "user_id")
    assert after.output_bytes_per_step * 2 == before.output_bytes_per_step
    assert after.kernel == "fused_uvm_caching" and after.cache_load_factor == 0.25
    held = after.weight_bytes + after.optimizer_bytes
    copied = sum(rank.copy_bytes for rank in cached.ranks)
    assert sum(rank.ddr_bytes for rank in cached.ranks) == held + copied
    assert after.buffer_bytes > 0.25 * after.weight_bytes
    applied = sharding_plan(cached).get_plan_for_module(TABLES_PATH)["user_id"]
    assert applied.compute_kernel == "fused_uvm_caching"
    assert applied.cache_params.load_factor == 0.25


BAD_TABLES = {
    "unknown table": (
        {"shop": {"sharding": "row_wise"}, "house": {"width": 4}},
        "tables.shop: no such table; the model has item_id, tags, user_id\n  tables.house: no such",
    ),
    "unknown type": (
        {"tags": {"sharding": ["row_wise", "sideways"]}},
        r"tables.tags.sharding\[1\]='sideways': expected data_parallel, ",
    ),
    "no type": ({"tags": {"sharding": []}}, r"tables.tags.sharding=\[\]: expected one of"),
    "unknown kernel": (
        {"tags": {"kernel": "magic"}},
        "tables.tags.kernel='magic': expected fused, fused_uvm, fused_uvm_caching or key_value",
    ),
    "virtual table": (
        {"tags": {"kernel": "dram_virtual_table"}},
        "tables.tags.kernel='dram_virtual_table': expected fused, ",
    ),
    "kernel on CPU": (
        {"tags": {"kernel": "fused_uvm"}},
        "tables.tags.kernel=fused_uvm: runs on GPU only, and 'custom' is a CPU cluster",
    ),
    "SSD on CPU": (
        {"tags": {"kernel": "key_value"}},
        "tables.tags.kernel=key_value: runs on GPU only, and 'custom' is a CPU cluster",
    ),
    "cache without kernel": (
        {"tags": {"cache_load_factor": 0.5}},
        "tables.tags.cache_load_factor: only with kernel=fused_uvm_caching or key_value",
    ),
    "cache of nothing": (
        {"tags": {"kernel": "fused_uvm_caching", "cache_load_factor": 0}},
        "tables.tags.cache_load_factor=0: expected more than 0",
    ),
    "rank outside": ({"tags": {"ranks": [2]}}, r"tables.tags.ranks=\[2\]: expected .* 0 to 1"),
    "rank twice": ({"tags": {"ranks": [1, 1]}}, r"tables.tags.ranks=\[1, 1\]: expected different"),
    "no rank": ({"tags": {"ranks": []}}, r"tables.tags.ranks=\[\]: expected different ranks"),
    "pinned rows": (
        {"tags": {"ranks": [0], "sharding": "row_wise"}},
        "only table_wise and column_wise tables can be pinned",
    ),
    "width": ({"tags": {"width": 6}}, "tables.tags.width=6: expected a multiple of 4"),
    "half and replicated": (
        {"tags": {"precision": "fp16", "sharding": ["row_wise", "data_parallel"]}},
        "tables.tags.sharding=data_parallel with precision=fp16: a replicated table is held in fp32",
    ),
    "unknown key": (
        {"tags": {"kernels": "fused"}},
        r"tables.tags.kernels: unknown key; .* \(did you mean tables.tags.kernel\?\)",
    ),
    "two at once, as they are written": (
        {"tags": {"ranks": [0, 0], "width": 6}, "user_id": {"kernel": "magic"}},
        "tables.tags.width=6.*\n  tables.user_id.kernel='magic'",
    ),
    "two at once, for the cluster": (
        {"tags": {"ranks": [7]}, "user_id": {"kernel": "fused_uvm"}},
        "tables.tags.ranks.*\n  tables.user_id.kernel",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_setting_of_a_table_names_table_and_key(case):
    tables, sentence = BAD_TABLES[case]
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        planned(tables=tables).plan()


def test_frozen_tables_have_a_placement_and_no_settings_of_training():
    """A half-precision frozen table is what launch/embed.py made, and nothing trains it."""
    config = {"width": 8, "optimizer": {"name": "sgd"}, "sharding": "row_wise"}
    sections = {"model": {"modalities": ["text"]}, "tables": {"modality_text": config}}
    with pytest.raises(ValueError) as raised:
        build_plannable(
            config=read_run_config(sections),
            manifest=tiny_world.manifest(),
            modality_dims={"text": 8},
            device_type="cpu",
        )
    assert "tables.modality_text.width: its vectors are frozen" in str(raised.value)
    assert "tables.modality_text.optimizer: its vectors are frozen" in str(raised.value)
    assert "sharding" not in str(raised.value)


def test_a_table_that_the_model_does_not_read_may_have_a_form_and_no_placement():
    model = {"modalities": [], "features": ["user_id", "item_id"]}

    def tables_with(config):
        sections = {"model": model, "tables": {"tags": config}}
        return build_plannable(
            config=read_run_config(sections),
            manifest=tiny_world.manifest(),
            modality_dims={},
            device_type="cpu",
        )[1]

    assert set(tables_with({"width": 8, "precision": "fp16"})) == {"user_id", "item_id"}
    with pytest.raises(ValueError, match="tables.tags: no such table; the model has item_id, user"):
        tables_with({"width": 8, "sharding": "row_wise"})


def test_a_mean_length_of_an_unknown_feature_is_refused():
    sentence = "plan.feature_lengths names shoe; the data has the features item_id, tags, user_id"
    with pytest.raises(ValueError, match=sentence):
        planned(plan={"feature_lengths": {"shoe": 3}}).plan()


BAD_VALUES = {
    "width": ({"model": {"embedding_dim": 10}}, "model.embedding_dim=10 for table"),
    "precision": ({"plan": {"forward_communication": "int4"}}, "plan.forward_communication='int4'"),
    "search": ({"plan": {"search": "deep"}}, "plan.search='deep': expected auto, full or fast"),
    "partition": ({"plan": {"min_partition": 6}}, "plan.min_partition=6: expected a multiple of 4"),
    "half on CPU": (
        {
            "tables": {"tags": {"precision": "fp16"}},
            "optim": {"table": {"name": "adam"}},
        },
        "tables.tags.precision=fp16: its optimizer is adam, which on CPU",
    ),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_value_is_a_clear_sentence(case):
    sections, sentence = BAD_VALUES[case]
    with pytest.raises(ValueError, match=sentence):
        planned(**sections).plan()


def test_the_default_batch_is_planned_on_any_number_of_ranks():
    """1,024 rows on 24 ranks are 42 or 43 a rank: all plan for 43, the last places left open."""
    for num_ranks, rows in ((1, 1024), (3, 342), (24, 43), (72, 15)):
        plan = planned(ClusterConfig(hosts=1, accelerators_per_host=num_ranks)).plan()
        assert plan.batch_size_per_rank == rows
        assert plan.num_ranks == num_ranks


def test_rows_are_checked_all_at_once():
    with pytest.raises(ValueError, match="rows of user_id are not known|user_id are not known"):
        planned(rows={"item_id": 5, "tags": 5})
    with pytest.raises(
        ValueError, match=r"rows.shop: no such table(?s:.*)rows.tags=-3: expected 1"
    ):
        with_rows(planned().manifest, {"shop": 4, "tags": -3})


def test_cluster_values_are_checked_all_at_once():
    bad = {"device": "tpu", "hosts": 0, "reserved_share": 1.5, "host_memory_gib": -1}
    with pytest.raises(ValueError) as raised:
        from_config(ClusterConfig, bad, "cluster")
    for key in ("device='tpu'", "hosts=0", "reserved_share=1.5", "host_memory_gib=-1"):
        assert f"cluster.{key}" in str(raised.value)
    with pytest.raises(
        ValueError, match="cluster.accelerator_memory_gib=0.0: expected more than 0"
    ):
        from_config(ClusterConfig, {"device": "cuda"}, "cluster")


def test_saved_plan_for_another_model_or_world_is_refused_with_the_difference(tmp_path):
    plan = planned(optim={"table": {"name": "sgd"}}).plan()
    write_plan(tmp_path / "plan.json", plan)
    read = read_plan(tmp_path / "plan.json")
    assert read == plan
    env = Env(rank=0, world_size=2, local_rank=0, local_world_size=2, device=torch.device("cpu"))

    def check(other, env=env):
        _, tables = build_plannable(
            config=other.config, manifest=other.manifest, modality_dims={}, device_type="cpu"
        )
        check_matches(read, tables=tables, env=env, source="plan.json")

    check(planned(optim={"table": {"name": "sgd"}}))
    other = planned(
        rows=ROWS | {"tags": 1_001},
        optim={"table": {"name": "sgd"}},
        tables={"user_id": {"optimizer": {"name": "adam"}}},
    )
    with pytest.raises(ValueError) as raised:
        check(other, dataclasses.replace(env, world_size=4))
    sentence = str(raised.value)
    assert "it is for 2 ranks, this job has 4" in sentence
    assert "table 'tags' has rows 1001 and the plan says 1000" in sentence
    assert "table 'user_id' has optimizer adam and the plan says sgd" in sentence
    with pytest.raises(ValueError, match="no plan here"):
        read_plan(tmp_path / "absent.json")


def test_plan_of_an_earlier_version_is_read_and_written_as_it_was(tmp_path):
    """The file was written at d5d31a3, of this very catalogue with a text modality."""
    file = Path(__file__).with_name("plan_version_1.json")
    plan = read_plan(file)
    assert plan.tables == planned(dims={"text": 127}).plan().tables
    write_plan(tmp_path / "plan.json", plan)
    assert (tmp_path / "plan.json").read_bytes() == file.read_bytes()


WRONG_PLANS = {
    "missing": (lambda plan: plan["tables"][0].pop("rows"), "tables.0.rows: Field required"),
    "type": (lambda plan: plan["shards"][0].update(rows=[0, "x"]), "shards.0.rows.1: .* integer"),
    "no shards": (lambda plan: plan.update(shards=[]), "KeyError: "),
    "no rank": (
        lambda plan: plan["tables"][0].update(sharding="row_wise"),
        "shard of table 'item_id' has no rank",
    ),
}


@pytest.mark.parametrize("case", WRONG_PLANS)
def test_plan_that_is_not_whole_is_refused_with_the_place(tmp_path, case):
    breaks, sentence = WRONG_PLANS[case]
    content = json.loads(Path(__file__).with_name("plan_version_1.json").read_text())
    breaks(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"plan.json: not a whole plan .*{sentence}"):
        read_plan(tmp_path / "plan.json")


def test_fast_search_finds_the_plan_of_the_full_one():
    tables = {"user_id": {"sharding": ["row_wise", "table_row_wise"]}}
    small = dataclasses.replace(H100, hosts=2, accelerators_per_host=2)
    full, fast = (
        planned(small, tables=tables, plan={"search": search}).plan() for search in ("full", "fast")
    )
    assert fast.summary.critical_path_ms <= 1.05 * full.summary.critical_path_ms
