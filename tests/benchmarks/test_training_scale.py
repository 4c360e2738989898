"""A step must not cost what a table holds, and the loader must outrun the step. `make bench`."""

import itertools
import time

import numpy as np
import pytest

from recsys.data.dataset import Dataset
from recsys.data.loader import Loader, ReadAhead
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start
from recsys.sharding.pipeline import build_pipeline
from tests.benchmarks.synthetic import write_prepared

pytestmark = pytest.mark.bench
BATCH = 4096


def loader_for(workspace, manifest, features):
    return Loader(
        Dataset(workspace / "prepared", manifest, split="train", features=features),
        global_batch_size=BATCH,
        rank=0,
        world_size=1,
        num_lanes=8,
        shuffle=True,
        seed=0,
        ahead=ReadAhead(num_prefetch=0),
    )


def trainer(workspace, num_rows, num_users, num_items):
    manifest = write_prepared(
        workspace, num_rows=num_rows, num_users=num_users, num_items=num_items
    )
    config = read_run_config({
        "model": {"modalities": []},
        "train": {"global_batch_size": BATCH, "pipeline": "plain"},
    })
    env = start("cpu")
    ranker, _, sharded = plan_and_shard(config=config, manifest=manifest, vectors={}, env=env)
    sharded.model.train()
    loader = loader_for(workspace, manifest, batch_features(ranker))
    return loader, build_pipeline("plain", sharded, env)


def step_seconds(loader, pipeline, steps):
    """Seconds of every step on batches made beforehand."""
    batches = iter(list(itertools.islice(loader.batches(0), steps)))
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        pipeline.progress(batches)
        seconds.append(time.perf_counter() - begun)
    return seconds[5:]


def test_step_with_thirty_million_rows_costs_at_most_thirteen_tenths(tmp_path):
    """Both sides alternate in one run: 0.3 and 30 million table rows, width 16."""
    small = trainer(tmp_path / "small", 400_000, 200_000, 100_000)
    large = trainer(tmp_path / "large", 400_000, 20_000_000, 10_000_000)
    rounds = {"small": [], "large": []}
    for _ in range(5):
        rounds["small"] += step_seconds(*small, 25)
        rounds["large"] += step_seconds(*large, 25)
    best = {name: min(times) for name, times in rounds.items()}
    median = {name: float(np.median(times)) for name, times in rounds.items()}
    ratio = median["large"] / median["small"]
    print(
        f"\nstep of {BATCH} rows: 0.3 M rows best {best['small'] * 1e3:.1f} ms, median "
        f"{median['small'] * 1e3:.1f} ms; 30 M rows best {best['large'] * 1e3:.1f} ms, median "
        f"{median['large'] * 1e3:.1f} ms; ratio of medians {ratio:.2f}"
    )
    assert ratio <= 1.3


def test_loader_delivers_five_times_what_the_step_consumes(tmp_path):
    """Alone, one thread, features and a history of 20, against the training step on ready batches."""
    loader, pipeline = trainer(tmp_path, 400_000, 200_000, 100_000)
    loader_rates, step_rates = [], []
    for epoch in range(5):
        begun = time.perf_counter()
        count = sum(batch.global_rows for batch in loader.batches(epoch))
        loader_rates.append(count / (time.perf_counter() - begun))
        step_rates.append(BATCH / float(np.median(step_seconds(loader, pipeline, 25))))
    ratio = np.median(loader_rates) / np.median(step_rates)
    print(
        f"\nloader best {max(loader_rates):,.0f}, median {np.median(loader_rates):,.0f} rows/s; "
        f"step best {max(step_rates):,.0f}, median {np.median(step_rates):,.0f} rows/s; ratio "
        f"{ratio:.1f}"
    )
    assert ratio >= 5
