"""Serve a bundle over HTTP: recommendations, scores, similar items, search, explanations, events.

In: a bundle of launch/export.py. Out: answers under http://HOST:PORT/v1 (described at /openapi.json), and
the event store W/events.db. Runs until SIGTERM or Ctrl-C, which answer what has begun. A newer bundle
that `current` names is taken over without a pause.

    python launch/serve.py bundle=W/bundles/current
    python launch/serve.py bundle=W/bundles/current port=8080 workers=2 events=postgresql://me@host/name
    python launch/serve.py bundle=W/bundles/A compare=W/bundles/B    # people compare both, blind
"""

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.job import hydra_job, run_job, say
from recsys.serving.server.config import ServeConfig, num_workers
from recsys.serving.server.process import serve, shown_place
from recsys.serving.server.target import find_target

KEYS = (ServeConfig,)


def job(cfg: DictConfig) -> None:
    """Say what is served, and serve."""
    (config,) = read_job(cfg, KEYS)
    say(f"bundle {find_target(config.bundle).folder}, {num_workers(config)} worker(s)")
    if config.compare is not None:
        say(f"compared with {find_target(config.compare, 'compare').folder}")
    say(f"events: {shown_place(config)}")
    address = f"http://{config.host}:{config.port}"
    say(f"gallery: {address}/")
    say(
        f"""next: curl --json '{{"k": 5}}' {address}/v1/recommend (all routes: {address}/openapi.json)"""
    )
    serve(config)


@hydra_job("serve", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
