"""Population of a load test: ids of users and items that requests name, of a bundle or of a server.

Called by launch/loadtest.py and workload.py.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.bundle.bundle import Bundle
from recsys.errors import UserError
from recsys.schema import local_path
from recsys.serving.load.client import Connection, post
from recsys.serving.load.config import LoadTestConfig
from recsys.serving.load.server import Server
from recsys.serving.requests import MAX_ITEMS

NUM_LIKES = 5
"""Items that a visitor names."""
_SAMPLE = 20_000
"""Users, and items, drawn from a bundle."""


@dataclass(frozen=True)
class Population:
    """Ids that requests are drawn from."""

    users: Sequence[str]
    """Empty: everybody is a visitor."""
    items: Sequence[str]


def read_population(config: LoadTestConfig, server: Server) -> Population:
    """Return ids of the bundle, or what the server recommends where only its URL is known.

    Raises:
        UserError: the bundle cannot be opened, or the server recommends too little.
    """
    if config.bundle is None:
        return _learn_population(server)
    bundle = Bundle.open(local_path(config.bundle, "bundle"))
    rng = np.random.default_rng(config.seed)
    users, items = (_drawn_ids(bundle, table, rng) for table in ("user_id", "item_id"))
    return Population(users, items)


def _drawn_ids(bundle: Bundle, table: str, rng: np.random.Generator) -> list[str]:
    vocabulary = bundle.vocabularies.get(table)
    if vocabulary is None:
        return []
    num_ids = vocabulary.num_rows - 1  # row 0 stands for the unknown
    rows = 1 + rng.choice(num_ids, min(num_ids, _SAMPLE), replace=False)
    return [text for text in map(vocabulary.id_of, rows.tolist()) if text]


def _learn_population(server: Server) -> Population:
    async def ask() -> tuple[int, bytes]:
        body = {"k": MAX_ITEMS, "candidates": MAX_ITEMS}
        async with Connection(server.host, server.port) as connection:
            return await connection.ask(post(server.address, "recommend", body))

    status, answer = asyncio.run(ask())
    if status != 200:
        raise UserError(f"http://{server.address}/v1/recommend: HTTP {status}, {answer[:300]!r}")
    items = [item["id"] for item in json.loads(answer)["items"]]
    if len(items) < NUM_LIKES:
        raise UserError(
            f"http://{server.address} recommends {len(items)} items; a load test needs {NUM_LIKES}"
        )
    return Population((), items)
