"""UMAIR-FPS beside its plain PyTorch form and the machine's floor (umair_fps_speed.py). `make bench`."""

import os

import pytest
import torch

from tests.benchmarks.umair_fps_speed import (
    SIZES,
    Case,
    Ours,
    as_markdown,
    measure,
    plain_batch,
    plain_form,
    write_data,
)


def same_weights(ours):
    """Return the plain form with our weights."""
    plain = plain_form(ours)
    shards = ours.sharded.table_shards()
    plain.load(ours.sharded.dense_state(), {shard.table: shard.weight for shard in shards})
    return plain


@pytest.mark.parametrize("size", SIZES)
def test_plain_form_computes_the_same_logits(one_process, tmp_path, size):
    write_data(tmp_path, history=20, num_rows=256, num_users=30, num_items=40)
    ours = Ours(tmp_path, Case(size=size, history=20, batch=64), threads=1)
    ours.steps(2)
    plain = same_weights(ours)
    batch = ours.batches[2]
    ids, _ = plain_batch(batch)
    ours.sharded.model.eval(), plain.eval()
    with torch.no_grad():
        _, scores = ours.sharded.model(batch)
        torch.testing.assert_close(plain(ids), scores.logits_B, rtol=1e-4, atol=1e-5)
    assert scores.logits_B.std() > 0.01


@pytest.mark.bench
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("history", [20, 50])
@pytest.mark.parametrize("size", SIZES)
def test_steps_are_faster_than_those_of_the_plain_form(tmp_path, size, history):
    """The share of the floor is printed; it is far from one half (LOG.md, 2026-11-27)."""
    write_data(tmp_path, history)
    threads = len(os.sched_getaffinity(0))
    results = [
        measure(
            tmp_path,
            Case(size=size, history=history, batch=batch, precision=precision),
            rounds=5,
            threads=threads,
        )
        for precision in ("fp32", "bf16")
        for batch in (1_024, 4_096, 65_536)
    ]
    print("\n" + as_markdown(results))
    for result in results:
        assert result["Tessera"]["best"] >= 1.4 * result["plain PyTorch"]["best"]
