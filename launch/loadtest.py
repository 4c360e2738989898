"""Measure a server under load: requests a second, latencies and errors, by route and candidates.

In: a bundle, whose server is started on a free port, or the URL of a server. Out: a table, and
W/loadtest/<version>.json. One process makes the load, over loopback.

    python launch/loadtest.py bundle=W/bundles/current
    python launch/loadtest.py bundle=W/bundles/current 'server_cores=[0]' 'candidates=[500]' rate=150
    python launch/loadtest.py url=http://127.0.0.1:8000 'routes=[recommend]'
"""

import dataclasses

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.job import hydra_job, run_job, say, stage
from recsys.serving.load.config import LoadTestConfig
from recsys.serving.load.measure import measurements
from recsys.serving.load.population import read_population
from recsys.serving.load.result import machine, result_path, table, write_result
from recsys.serving.load.server import server_under_load

KEYS = (LoadTestConfig,)


def job(cfg: DictConfig) -> None:
    """Start the server, measure, and show."""
    # 1. Settings; what machine this is, before there is any load on it.
    (config,) = read_job(cfg, KEYS)
    here = machine()
    say(", ".join(f"{name} {fact}" for name, fact in here.items()))

    # 2. The server, and who asks it for what.
    with server_under_load(config) as server:
        say(f"http://{server.address} serves {server.version}")
        with stage("requests") as made:
            population = read_population(config, server)
            made.done(f"{len(population.users):,} users, {len(population.items):,} items")

        # 3. One measurement after the other.
        rows = []
        for row in measurements(config, server, population):
            rows.append(row)
            say(
                f"{row.route}, {row.candidates:,} candidates, {row.loop} loop: "
                f"{row.requests_per_second:,.1f} requests/s, {sum(row.errors.values()):,} errors"
            )
        memory = server.memory_bytes()

    # 4. The table, and the same as JSON.
    print(table(rows), flush=True)
    target = result_path(config, server)
    if target is not None:
        facts = {"machine": here, "bundle": server.version, "memory_bytes": memory}
        write_result(target, rows, **facts, settings=dataclasses.asdict(config))
        say(f"results: {target}")


@hydra_job("loadtest", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
