"""What a save costs the training that goes on beside it. `make bench`."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.checkpoint.integrity import newest_whole
from recsys.checkpoint.saver import Saver
from recsys.checkpoint.state import TrainState
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start
from recsys.sharding.pipeline import build_pipeline
from tests.benchmarks.synthetic import write_prepared
from tests.benchmarks.test_training_scale import BATCH, loader_for

pytestmark = pytest.mark.bench
STEPS = 20
"""Steps of a round; one save after the third."""


def round_of(pipeline, batches, saver: Saver | None, step: int) -> tuple[float, float]:
    """Return (seconds of all steps and the save, seconds the save itself held training up)."""
    begun = time.perf_counter()
    blocked = 0.0
    for index in range(STEPS):
        pipeline.progress(batches)
        if index == 3 and saver is not None:
            asked = time.perf_counter()
            saver.save(TrainState(step=step), best=False)
            blocked = time.perf_counter() - asked
    if saver is not None:
        saver.wait()
    return time.perf_counter() - begun, blocked


@pytest.mark.parametrize("num_rows", [1_000_000, 10_000_000])
def test_a_save_in_the_background_holds_training_up_for_a_copy_only(tmp_path: Path, num_rows):
    """Three ways alternate in one run: no save, one that training waits for, one in the background."""
    manifest = write_prepared(
        tmp_path, num_rows=400_000, num_users=num_rows * 3 // 4, num_items=num_rows // 4
    )
    config = read_run_config({
        "model": {"modalities": []},
        "train": {"global_batch_size": BATCH, "pipeline": "plain"},
    })
    env = start("cpu")
    ranker, _, sharded = plan_and_shard(config=config, manifest=manifest, vectors={}, env=env)
    sharded.model.train()
    ready = list(
        itertools.islice(loader_for(tmp_path, manifest, batch_features(ranker)).batches(0), 20)
    )
    batches = itertools.cycle(ready)
    pipeline = build_pipeline("plain", sharded, env)

    def saver(in_background: bool) -> Saver:
        return Saver(
            tmp_path / ("background" if in_background else "waiting"),
            sharded=sharded,
            env=env,
            keep_last=1,
            in_background=in_background,
            on_failure=lambda: None,
            report=lambda step, costs: written.append(costs["checkpoint/write_seconds"]),
        )

    written: list[float] = []
    ways = {"none": None, "waiting": saver(False), "background": saver(True)}
    round_of(pipeline, batches, None, 0)
    for way in ("waiting", "background"):
        round_of(pipeline, batches, ways[way], 1)
    written.clear()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    held: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(3):
        for way, chosen in ways.items():
            total, blocked = round_of(pipeline, batches, chosen, repeat + 2)
            seconds[way].append(total)
            held[way].append(blocked)
    stored = sum(p.stat().st_size for p in newest_whole(tmp_path / "background", env).iterdir())
    plain = np.median(seconds["none"])
    print(
        f"\n{num_rows:,} rows, checkpoint {stored / 1e6:.0f} MB, {torch.get_num_threads()} thread(s), "
        f"step {plain / STEPS * 1e3:.1f} ms"
    )
    for way in ("waiting", "background"):
        print(
            f"  {way}: held up best {min(held[way]):.3f} s, median {np.median(held[way]):.3f} s; "
            f"all {STEPS} steps and the save take {np.median(seconds[way]) - plain:.3f} s more "
            f"(medians), best {min(seconds[way]) - min(seconds['none']):.3f} s"
        )
    print(f"  writing, syncing and checksums: median {np.median(written):.3f} s")
    assert np.median(held["background"]) < np.median(held["waiting"]) / 3
