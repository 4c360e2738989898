"""Write the events of a period as a log that launch/prepare.py reads: one row for a user and an item.

In: the event store of launch/serve.py. Out: W/raw/events.parquet, which the recipe data=events reads.

    python launch/events.py workspace=W
    python launch/events.py workspace=W since=2026-11-01 until=2026-12-01
"""

from pathlib import Path

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.overrides import override
from recsys.serving.event_log import EventLogConfig, write_event_log
from recsys.serving.store import Store

KEYS = (EventLogConfig,)


def job(cfg: DictConfig) -> None:
    """Read the store, write the log."""
    (config,) = read_job(cfg, KEYS)
    store = Store.open(config.place)
    with stage(f"events of {store.name}") as writing:
        counts = write_event_log(
            store,
            config.path,
            since=config.start,
            until=config.end,
            position_bias=config.position_bias,
        )
        store.close()
        writing.done(f"{counts.events:,} events, {counts.rows:,} rows, {counts.likes:,} liked")
    say(f"results: {config.path}")
    source = override("data.source", str(Path(config.path).parent))
    place = f"{config.workspace}-events"
    say(f"next: {next_command('prepare', place, source, data='events')}")


@hydra_job("events", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
