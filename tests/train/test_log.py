"""What a run writes while it trains."""

import torch

from recsys.checkpoint.state import TrainState
from recsys.runtime.env import Env
from recsys.train.log import RunLog

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def test_a_line_is_strict_json_where_a_metric_has_no_value(tmp_path):
    log = RunLog(
        tmp_path, env=ALONE, state=TrainState(), gradients=None, total_steps=1, log_every_steps=1
    )
    log.write(3, {"valid/auc": 0.5, "valid/gauc": float("nan")})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "valid/auc": 0.5, "valid/gauc": null}\n'
