"""What a run writes while it trains."""

import torch

from recsys.checkpoint.state import TrainState
from recsys.runtime.env import Env
from recsys.tracking.tracker import TrackedRun, Trackers
from recsys.train.log import RunLog

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def test_a_line_is_strict_json_where_a_metric_has_no_value(tmp_path):
    log = RunLog(
        tmp_path,
        env=ALONE,
        state=TrainState(),
        gradients=None,
        total_steps=1,
        log_every_steps=1,
        open_trackers=lambda: Trackers(
            TrackedRun(folder=tmp_path, data="x"), {}, new_must_open=True
        ),
    )
    log.write(3, {"valid/auc": 0.5, "valid/gauc": float("nan")})
    log.close("finished")
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "valid/auc": 0.5, "valid/gauc": null}\n'
