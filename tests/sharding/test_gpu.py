"""On a GPU the tables train as on a CPU, from either memory, and go on from a checkpoint; not on SSD."""

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from torchrec.distributed.batched_embedding_kernel import SSDTableBatchedEmbeddingBags

from recsys.runtime.env import start, stop
from recsys.sharding.ssd import storage_on_ssd
from recsys.sharding.tables import TableSettings
from tests import tiny_world
from tests.sharding.ids_worker import run_stage
from tests.sharding.penalty_worker import (
    OPTIMIZERS,
    assert_tables,
    by_the_formula,
    trained_tables,
)
from tests.sharding.worker import GLOBAL_BATCH, TABLES, settings, train

pytestmark = pytest.mark.gpu

IDS_UNTIL = 20
NORMALISED = {"batch_norm": True}


def every_table(**more):
    return dict.fromkeys(TABLES, more)


@pytest.fixture(scope="module")
def on_cpu(gpu, no_process_group_left):
    """Losses and scores of the CPU, whose process group ends before that of the GPU begins."""
    env = start("cpu")
    found = {name: train(env, settings(name))[0] for name in OPTIMIZERS}
    found["batch_norm"], _ = train(env, settings("sgd", model=NORMALISED))
    found["ids"] = run_stage(env, {"until": IDS_UNTIL})
    stop()
    return found


@pytest.fixture(scope="module")
def ids_on_cpu(on_cpu):
    """Losses and maps of the drifting world on the CPU."""
    return on_cpu["ids"]


@pytest.fixture(scope="module")
def one_gpu(on_cpu):
    """The Env of a job of one process on the GPU, in a group of nccl."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, for the same bits
        env = start("cuda")
        assert torch.distributed.get_backend() == "nccl"
        yield env
        stop()


@pytest.fixture
def same_bits():
    """Operators that give the same bits every time, as run.deterministic=true chooses them."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def agree(one, other, tolerance):
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=tolerance)
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=20 * tolerance)


def tables_of(sharded):
    return {shard.table: shard.weight.float().cpu().numpy() for shard in sharded.table_shards()}


@pytest.mark.parametrize("pipeline", ["plain", "sparse_dist"])
@pytest.mark.parametrize(
    ("optimizer", "tables", "tolerance"),
    [
        # Of a gradient near 0 the step has the sign, be the gradient rounded this way or that.
        ("adam", every_table(sharding="data_parallel"), 1e-3),
        ("rowwise_adagrad", {}, 1e-4),
        ("sgd", {}, 1e-4),
    ],
)
def test_losses_are_those_of_a_cpu(one_gpu, on_cpu, optimizer, tables, tolerance, pipeline):
    found, _ = train(one_gpu, settings(optimizer, tables=tables), pipeline=pipeline)
    agree(found, on_cpu[optimizer], tolerance)


@pytest.mark.parametrize(
    ("sharding", "others_move"), [("table_wise", False), ("data_parallel", True)]
)
def test_adam_steps_every_row_of_a_replicated_table_alone(one_gpu, sharding, others_move):
    config = settings("adam", tables={"user_id": {"sharding": sharding}})
    one, two = (tables_of(train(one_gpu, config, steps=steps)[1])["user_id"] for steps in (1, 2))
    moved = set(np.flatnonzero(np.abs(two - one).max(axis=1) > 1e-5).tolist())
    second = tiny_world.batch(range(GLOBAL_BATCH), ["user_id"], 1)
    looked_up = set(second.features.sparse.values().tolist())
    assert looked_up <= moved
    assert bool(moved - looked_up) == others_move


def test_batch_norm_trains_as_on_a_cpu(one_gpu, on_cpu):
    found, _ = train(one_gpu, settings("sgd", model=NORMALISED))
    agree(found, on_cpu["batch_norm"], 1e-3)


@pytest.mark.parametrize("sharding", [{}, dict.fromkeys(TABLES, "data_parallel")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_penalty_of_a_table_is_the_formulas(one_gpu, optimizer, sharding):
    expected = by_the_formula(one_gpu, optimizer)
    assert_tables(trained_tables(one_gpu, optimizer, sharding), expected)


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tables_in_main_memory_get_the_values_of_those_on_the_card(one_gpu, optimizer, kernel):
    """The cache takes 32 of 109 rows, fewer than a step looks up."""
    _, card = train(one_gpu, settings(optimizer, tables=every_table(sharding="table_wise")))
    tables = every_table(sharding="table_wise", kernel=kernel)
    _, main = train(one_gpu, settings(optimizer, tables=tables))
    expected, found = tables_of(card), tables_of(main)
    assert sorted(found) == sorted(expected) == sorted(TABLES)
    for name, rows in found.items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_validation_drops_rows_that_a_table_on_ssd_has_not_written(one_gpu, tmp_path):
    """Why such tables are planned and not trained (docs/ids.md); and their memories are those planned.

    All rows of a cache of one set are trained, by a step of about 1; a lookup of as many others pushes
    them out. Rows that are read anew have their first values, within 0.01.
    """
    planned = storage_on_ssd(TableSettings(rows=64, width=8, kernel="key_value"), [64, 8])
    for is_training in (True, False):
        kernel = SSDTableBatchedEmbeddingBags(
            [(64, 8)],
            feature_table_map=[0],
            cache_sets=1,
            ssd_storage_directory=str(tmp_path / str(is_training)),
            ssd_cache_location=EmbeddingLocation.DEVICE,
            ssd_uniform_init_lower=-0.01,
            ssd_uniform_init_upper=0.01,
            learning_rate=1.0,
        )

        def look_up(first, kernel=kernel):
            offsets = torch.arange(33, device="cuda")
            torch.cuda.synchronize()  # rows are written on a stream of their own
            return kernel(first + offsets[:32], offsets)

        look_up(0).sum().backward()
        kernel.train(is_training)
        with torch.no_grad():
            look_up(32)
            kernel.train(True)
            kept = look_up(0).abs().min().item() > 0.5
        assert kept == is_training
        cache = (kernel.lxu_cache_weights, kernel.lxu_cache_state, kernel.lru_state)
        assert sum(tensor.nbytes for tensor in cache) == planned.cache_bytes
        evicted = [
            *kernel.lxu_cache_evicted_weights_list,
            *kernel.lxu_cache_evicted_indices_list,
            *kernel.lxu_cache_evicted_slots_list,
        ]
        assert sum(tensor.nbytes for tensor in evicted) == planned.host_bytes - (4 << 31)


def test_fp16_tables_train_close_to_fp32_ones(one_gpu):
    full, _ = train(one_gpu, settings("rowwise_adagrad"))
    half, sharded = train(
        one_gpu, settings("rowwise_adagrad", tables=every_table(precision="fp16"))
    )
    assert {shard.weight.dtype for shard in sharded.table_shards()} == {torch.float16}
    assert half["losses"] != full["losses"]
    agree(half, full, 5e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 5e-3), ("bf16", 2e-2)])
def test_lower_dense_precision_trains_close_to_fp32(one_gpu, precision, tolerance):
    full, _ = train(one_gpu, settings("sgd"))
    assert not torch.backends.cuda.matmul.allow_tf32
    lower, _ = train(one_gpu, settings("sgd", model={"dense_precision": precision}))
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    assert lower["losses"] != full["losses"]
    agree(lower, full, tolerance)


@pytest.mark.parametrize(
    ("optimizer", "sharding"),
    [("adam", "table_wise"), ("adam", "data_parallel"), ("rowwise_adagrad", "table_wise")],
)
def test_resume_is_bit_equal_with_dropout(one_gpu, same_bits, optimizer, sharding, tmp_path):
    """The tables' count of steps included: the part is scored before it is saved."""
    tables = every_table(sharding=sharding)
    config = settings(optimizer, model={"dropout": 0.3}, tables=tables)
    whole, _ = train(one_gpu, config, steps=10, pipeline="sparse_dist")
    train(one_gpu, config, steps=4, pipeline="sparse_dist", save=tmp_path)
    rest, _ = train(
        one_gpu,
        config,
        steps=6,
        first_step=4,
        pipeline="sparse_dist",
        load=tmp_path / "step-00000004",
    )
    assert rest["losses"] == whole["losses"][4:]
    assert rest["scores"] == whole["scores"]


@pytest.mark.parametrize("pipeline", ["plain", "sparse_dist"])
@pytest.mark.parametrize("kernel", ["fused", "fused_uvm", "fused_uvm_caching"])
def test_ids_come_and_go_on_the_card_and_in_main_memory_as_on_a_cpu(
    one_gpu, ids_on_cpu, kernel, pipeline
):
    """The cache takes 20 % of the rows, fewer than a step looks up."""
    stage = {"until": IDS_UNTIL, "kernel": kernel, "pipeline": pipeline, "check": True}
    found = run_stage(one_gpu, stage)
    assert found["problems"] == []
    assert found["maps"] == ids_on_cpu["maps"]
    assert found["noted"] == ids_on_cpu["noted"]
    np.testing.assert_allclose(found["losses"], ids_on_cpu["losses"], rtol=1e-4)


@pytest.mark.parametrize("kernel", ["fused", "fused_uvm_caching"])
def test_ids_go_on_from_a_checkpoint_on_the_card(one_gpu, same_bits, kernel, tmp_path):
    keys = {"kernel": kernel, "pipeline": "sparse_dist"}
    whole = run_stage(one_gpu, {**keys, "until": IDS_UNTIL})
    first = run_stage(one_gpu, {**keys, "until": 8, "save": str(tmp_path)})
    load = f"{tmp_path}/step-00000008"
    rest = run_stage(one_gpu, {**keys, "until": IDS_UNTIL, "load": load})
    assert first["losses"] + rest["losses"] == whole["losses"]
    assert rest["maps"] == whole["maps"]
