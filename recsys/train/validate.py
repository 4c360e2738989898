"""Validation during training: metrics over all rows of all ranks, the same value on every rank."""

import math
import time

from recsys.checkpoint.state import TrainState
from recsys.data.loader import Loader
from recsys.evaluation.predict import predict
from recsys.job import say
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.summary import evaluate_rows_of
from recsys.runtime.collectives import share, sharing_errors
from recsys.runtime.env import Env
from recsys.runtime.ranks import all_ranks
from recsys.runtime.signals import StopSignals
from recsys.sharding.apply import ShardedRanker
from recsys.train.log import RunLog

_STUCK_MARGIN = 0.005


class Validation:
    """Scores the validation split and reports; called by the loop whenever one is due."""

    def __init__(
        self,
        *,
        sharded: ShardedRanker,
        loader: Loader,
        log: RunLog,
        env: Env,
        signals: StopSignals,
        metric: str,
        of: str = "",
    ):
        """Args: metric: key of evaluate_predictions that decides which checkpoint is best; of: words for
        the rows in its line, where they are not those of split valid.
        """
        self.sharded = sharded
        self.loader = loader
        self.log = log
        self.env = env
        self.signals = signals
        self.metric = metric
        self.of = of

    def run(self, state: TrainState) -> float:
        """Return the validation metric of the model as it is; every rank gets the same value.

        Raises:
            Interrupted: a stop is due.
        """
        started = time.perf_counter()
        batches = self.signals.watched(self.loader.batches(epoch=0))
        predicted = predict(self.sharded, batches, self.env).emptied()
        # The other columns are let go, and these as they are sorted.
        columns = {name: predicted[name] for name in ("label", "score", "user_row")}
        del predicted
        if not self.loader.dataset.manifest.num_user_rows:
            del columns["user_row"]
        with sharing_errors():
            rows = labelled_scores(
                columns.pop("label"),
                columns.pop("score"),
                columns.pop("user_row", None),
                ranks=all_ranks(),
            )
            metrics = evaluate_rows_of(rows).flat()
        return share(lambda: self._report(state, metrics, started))

    def _report(self, state: TrainState, metrics: dict[str, float], started: float) -> float:
        """Print and write the metrics of the rows of all ranks; return the one that decides."""
        seconds = time.perf_counter() - started
        metrics["examples_per_second"] = metrics["num_rows"] / max(seconds, 1e-9)
        self.log.write(state.step, {f"valid/{k}": v for k, v in metrics.items()})
        loss = "" if math.isnan(self.log.last_loss) else f"train loss {self.log.last_loss:.4f}, "
        of = f"{self.of}, " if self.of else ""
        say(
            f"epoch {state.epoch} step {state.step:,}: {of}"
            f"{loss}validation AUC {metrics['auc']:.4f}, "
            f"log-loss {metrics['log_loss']:.4f} "
            f"({metrics['num_rows']:,} rows)"
        )
        if abs(metrics["auc"] - 0.5) < _STUCK_MARGIN:
            say(
                "warning: validation AUC is stuck at 0.5. Likely causes: labels that do "
                "not depend on the features (check the recipe's label), a learning rate "
                "too small or too large (optim.dense_learning_rate, optim.table), or "
                "features left out (model.features, model.modalities)"
            )
        return metrics[self.metric]
