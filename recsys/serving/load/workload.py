"""Requests of a load test: people of the bundle and visitors, asking for scores and recommendations.

Called by measure.py.
"""

from typing import Any

import numpy as np

from recsys.errors import UserError
from recsys.serving.load.client import Request, post
from recsys.serving.load.config import LoadTestConfig, Route
from recsys.serving.load.population import NUM_LIKES, Population
from recsys.serving.load.server import Server

NUM_REQUESTS = 1000
"""Different requests of a measurement; more are repetitions."""


def make_requests(
    config: LoadTestConfig, server: Server, population: Population, route: Route, candidates: int
) -> list[Request]:
    """Return requests of one route, seeded; each by a user or, for the share `visitors`, by likes.

    Raises:
        UserError: `score` is to have more candidates than there are items.
    """
    rng = np.random.default_rng([config.seed, candidates])
    num_items = len(population.items)
    if route == "score" and candidates > num_items:
        raise UserError(
            f"candidates={candidates}: the catalogue has {num_items:,} items that are known here"
        )
    made = []
    for _ in range(NUM_REQUESTS):
        body: dict[str, Any] = {}
        if not population.users or rng.random() < config.visitors:
            likes = rng.integers(num_items, size=NUM_LIKES)
            body["likes"] = [population.items[i] for i in likes]
        else:
            body["user"] = population.users[int(rng.integers(len(population.users)))]
        if route == "score":
            rows = rng.choice(num_items, candidates, replace=False)
            body["items"] = [population.items[i] for i in rows]
            made.append(post(server.address, route, body, candidates))
        else:
            k = min(config.k, candidates)
            made.append(post(server.address, route, {**body, "k": k, "candidates": candidates}, k))
    return made
