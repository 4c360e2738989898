"""Saving beside training: what is written is what was, one at a time, and a full disk is told."""

import resource
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from recsys.checkpoint import saver as saver_file
from recsys.checkpoint.integrity import damage_of, newest_whole
from recsys.checkpoint.saver import Saver
from recsys.checkpoint.state import TrainState
from recsys.runtime.env import Env
from recsys.sharding.id_maps import IdMaps
from recsys.sharding.optimizers import TableOptimizer
from recsys.sharding.shards import TableShard
from tests import tiny_world

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


@dataclass
class Ranker:
    """As much of a ShardedRanker as a checkpoint takes from it: one table, one dense weight."""

    num_rows: int
    weight: torch.Tensor = field(init=False)
    dense: torch.nn.Parameter = field(init=False)
    table_optimizers = {"user_id": TableOptimizer(name="sgd", learning_rate=0.1, l2=0.0)}

    def __post_init__(self):
        self.weight = torch.arange(self.num_rows * 4, dtype=torch.float32).reshape(-1, 4)
        self.dense = torch.nn.Parameter(torch.ones(3))
        self.dense_optimizer = torch.optim.Adam([self.dense])
        self.model = torch.nn.Module()
        self.model.dense = torch.nn.ParameterDict({"w": self.dense})
        self.id_maps = IdMaps({}, tiny_world.manifest(), exchange_every_steps=1, bound=0.01, seed=0)

    def table_shards(self):
        return [
            TableShard(
                table="user_id",
                weight=self.weight,
                row=0,
                column=0,
                num_rows_of_table=self.num_rows,
                num_columns_of_table=4,
                replicated=False,
                slots={"sum": self.weight[:, :1]},
            )
        ]

    def dense_state(self):
        return {"w": self.dense.detach()}

    def step_counts(self):
        return {}

    def step(self):
        self.weight += 1
        self.dense.grad = torch.ones(3)
        self.dense_optimizer.step()


class Costs(list):
    def __call__(self, step, costs):
        self.append((step, costs))


def saver_of(folder, ranker, in_background=True, keep_last=2, asked=None, seconds_left=lambda: 1e9):
    return Saver(
        folder,
        sharded=ranker,
        env=ALONE,
        keep_last=keep_last,
        in_background=in_background,
        on_failure=(asked or threading.Event()).set,
        report=Costs(),
        seconds_left=seconds_left,
    )


@pytest.mark.parametrize("in_background", [True, False])
def test_a_checkpoint_holds_the_step_it_was_asked_at(tmp_path, in_background):
    """Training goes on at once; one save is in flight, and all of them arrive."""
    ranker = Ranker(200_000)
    before = {}
    with saver_of(tmp_path, ranker, in_background, keep_last=3) as saver:
        for step in (1, 2, 3):
            before[step] = (ranker.weight.clone(), ranker.dense.detach().clone())
            saver.save(TrainState(step=step, best_step=step, best_metric=0.5), best=step == 2)
            ranker.step()
    assert [step for step, _ in saver.report] == [1, 2, 3]
    for step, (weight, dense) in before.items():
        path = tmp_path / f"step-{step:08d}"
        assert damage_of(path) is None
        tables = load_file(path / "tables-rank00000.safetensors")
        torch.testing.assert_close(tables["user_id/0-0/weight"], weight, rtol=0, atol=0)
        torch.testing.assert_close(tables["user_id/0-0/sum"], weight[:, :1], rtol=0, atol=0)
        stored = load_file(path / "dense.safetensors")["w"]
        torch.testing.assert_close(stored, dense, rtol=0, atol=0)
        state = torch.load(path / "dense-optimizer.pt", weights_only=True)["state"]
        assert (int(state[0]["step"]) if state else 0) == step - 1
    assert '"step-00000002"' in (tmp_path / "best.json").read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("in_background", [True, False])
def test_a_save_that_a_stop_leaves_no_time_for_is_not_begun_and_the_one_before_stays(
    tmp_path, in_background
):
    left = [1e9]
    ranker = Ranker(200_000)
    with saver_of(tmp_path, ranker, in_background, seconds_left=lambda: left[0]) as saver:
        saver.save(TrainState(step=1), best=False)
        assert not saver.skipped
        saver.wait()
        left[0] = 0.0
        saver.save(TrainState(step=2), best=True)
        assert saver.skipped == "a save takes 0 s and 0 s were left"
    assert [step for step, _ in saver.report] == [1]
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]
    assert not list(tmp_path.glob(".*"))


def test_the_first_save_is_tried_however_little_time_is_left(tmp_path):
    with saver_of(tmp_path, Ranker(10), seconds_left=lambda: 0.5) as saver:
        saver.save(TrainState(step=1), best=False)
    assert not saver.skipped and damage_of(tmp_path / "step-00000001") is None


def test_the_wait_for_the_save_before_is_no_part_of_what_a_save_takes(tmp_path, monkeypatch):
    """Every save is written 10 s of a clock after it is let go on, which waiting for it does."""
    now, let_go, left = [100.0], threading.Semaphore(0), [1e9]

    def write(*_, **__):
        assert let_go.acquire(timeout=20)
        now[0] += 10

    monkeypatch.setattr(saver_file, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(saver_file, "write_checkpoint", write)
    with saver_of(tmp_path, Ranker(10), seconds_left=lambda: left[0]) as saver:
        saver.save(TrainState(step=1), best=False)
        wait = saver.wait
        monkeypatch.setattr(saver, "wait", lambda: (let_go.release(), wait()))
        saver.save(TrainState(step=2), best=False)
        now[0] += 4
        left[0] = 0.0
        saver.save(TrainState(step=3), best=False)
        both = "this save and the one before it need 16 s and 0 s were left"
        assert saver.skipped == both, "10 s, and the rest of 10 s of which 4 are over"
        saver.wait()
        left[0] = 13.0
        saver.save(TrainState(step=4), best=False)
        assert saver.skipped == "a save takes 14 s and 13 s were left"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB; where none may be mounted, files of 1 MB at most."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails with an error
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_is_told_and_the_earlier_checkpoint_stays(small_disk, in_background):
    small, large = Ranker(10_000), Ranker(200_000)
    with saver_of(small_disk, small, in_background) as saver:
        saver.save(TrainState(step=1), best=False)
    earlier = newest_whole(small_disk, ALONE)
    asked = threading.Event()
    saver = saver_of(small_disk, large, in_background, asked=asked)
    with pytest.raises(OSError, match="cannot be written") as failure:
        saver.save(TrainState(step=2), best=True)
        assert asked.wait(20), "the loop is asked to come back"
        saver.save(TrainState(step=3), best=False)
    told = str(failure.value)
    assert f"{small_disk}: the checkpoint of step 2 cannot be written (" in told
    for part in ("tables-rank00000.safetensors", "take 4,000,000 bytes", "train.keep_last"):
        assert part in told, told
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]
    assert newest_whole(small_disk, ALONE) == earlier
    with saver_of(small_disk, small, in_background) as saver:
        saver.save(TrainState(step=4), best=False)
    assert newest_whole(small_disk, ALONE).name == "step-00000004"


def test_an_error_of_training_still_leaves_the_save_in_flight(tmp_path):
    with pytest.raises(FloatingPointError), saver_of(tmp_path, Ranker(100_000)) as saver:
        saver.save(TrainState(step=1), best=False)
        raise FloatingPointError("the loss is nan")
    assert newest_whole(tmp_path, ALONE).name == "step-00000001"
