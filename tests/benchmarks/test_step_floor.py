"""Shape (b) against what this machine can do: its matrix rate, its memory, the bare step. `make bench`.

FLOPs of a step: two for each weight of the dense part and row forward, twice that backward. Bytes: every
looked-up row read once, and read and written once by the update; activations are not counted.
"""

import itertools
import json
import statistics
import time

import pytest
import torch

from recsys.data.dataset import Dataset
from recsys.data.loader import Loader, ReadAhead
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start
from recsys.sharding.pipeline import build_pipeline
from tests.benchmarks.click_log import SHAPES, write_click_log
from tests.benchmarks.side_by_side import BATCH, CONTENDERS, run_tessera
from tests.benchmarks.timing import best_seconds

pytestmark = pytest.mark.bench
SHAPE = SHAPES["b"]
WIDTH, DEEP, DIM = 26 * 16, 400, 16
WEIGHTS = 3 * WIDTH * WIDTH + WIDTH * DEEP + 2 * DEEP * DEEP + WIDTH + DEEP
FLOPS = 3 * 2 * BATCH * WEIGHTS
TABLE_BYTES = BATCH * 26 * 3 * 4 * DIM


def matrix_rate(dtype):
    """The best of torch's product in the shapes of the step and of a square one, FLOP/s."""
    rates = []
    for rows, width in ((BATCH, WIDTH), (2048, 2048)):
        left, right = torch.randn(rows, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
        seconds = best_seconds(lambda left=left, right=right: left @ right, 15)
        rates.append(2 * rows * width * width / seconds)
    return max(rates)


def memory_rate():
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / best_seconds(lambda: target.copy_(source), 5)


def bare_steps(workspace, manifest, precision):
    """Return a function that takes one step on a batch in memory, and gives its seconds."""
    config = read_run_config({
        "model": {
            "name": "dcn_v2",
            "cross": "full",
            "cross_layers": 3,
            "deep_dims": [400, 400, 400],
            "first_order": False,
            "dense_precision": precision,
        },
        "optim": {"table": {"name": "rowwise_adagrad"}},
    })
    env = start("cpu")
    ranker, _, sharded = plan_and_shard(config=config, manifest=manifest, vectors={}, env=env)
    sharded.model.train()
    loader = Loader(
        Dataset(workspace / "prepared", manifest, split="train", features=batch_features(ranker)),
        global_batch_size=BATCH,
        rank=0,
        world_size=1,
        num_lanes=8,
        shuffle=True,
        seed=0,
        ahead=ReadAhead(num_prefetch=0),
    )
    batches = list(itertools.islice(loader.batches(0), 20))
    pipeline = build_pipeline("plain", sharded, env)

    def seconds():
        times = []
        for batch in batches:
            begun = time.perf_counter()
            pipeline.progress(iter([batch]))
            times.append(time.perf_counter() - begun)
        return times

    return seconds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_reaches_what_the_machine_can_do(tmp_path, precision):
    manifest = write_click_log(tmp_path, SHAPE)
    steps = bare_steps(tmp_path, manifest, precision)
    contender = next(c for c in CONTENDERS if c.name == f"Tessera {precision}")
    threads = torch.get_num_threads()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    bare, rates, trained, memory = [], [], [], []
    for _ in range(5):
        rates.append(matrix_rate(dtype))
        memory.append(memory_rate())
        bare += steps()
        result = run_tessera(tmp_path, SHAPE, contender, threads)
        trained.append(result["train_samples_per_second"])
    floor = FLOPS / max(rates)
    print(
        "\n"
        + json.dumps(
            {
                "precision": precision,
                "threads": threads,
                "gflop_per_step": FLOPS / 1e9,
                "table_mb_per_step": TABLE_BYTES / 1e6,
                "matrix_gflops_per_second": max(rates) / 1e9,
                "memory_gb_per_second": max(memory) / 1e9,
                "floor_ms_flops": 1e3 * floor,
                "floor_ms_bytes": 1e3 * TABLE_BYTES / max(memory),
                "bare_step_ms_best": 1e3 * min(bare),
                "bare_step_ms_median": 1e3 * statistics.median(bare),
                "trained_step_ms_best": 1e3 * BATCH / max(trained),
                "trained_step_ms_median": 1e3 * BATCH / statistics.median(trained),
                "share_of_matrix_rate": floor / min(bare),
                "training_over_bare": max(trained) * min(bare) / BATCH,
            },
            indent=1,
        )
    )
    assert floor / min(bare) >= 0.8
    assert max(trained) * min(bare) / BATCH >= 0.7
