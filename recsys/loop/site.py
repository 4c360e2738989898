"""The site: asks the running server for a visitor's pictures, and tells it what the visitor did.

Called by arm.py, in the place of a rule.
"""

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.demo.days import DayWorld, day_start
from recsys.demo.world import item_row
from recsys.errors import UserError
from recsys.loop.visitors import Visitors
from recsys.loop.visits import Visit
from recsys.serving.load.client import Connection, Request, get, post
from recsys.serving.load.server import Server

_VISIT_SECONDS = 60
"""Time between two visitors of a day, on the world's clock."""
_SWAP_SECONDS = 120.0
_OK, _CREATED, _KNOWN = 200, 201, 409


class Site:
    """The site of one arm, for as long as its server runs."""

    def __init__(self, server: Server, visitors: Visitors):
        """Open a connection when it is first needed."""
        self._server, self._visitors = server, visitors
        self._place_of = {name: index for index, name in enumerate(visitors.world.item_ids)}
        self._loop = asyncio.Runner()
        self._connection = Connection(server.host, server.port)

    @property
    def _world(self) -> DayWorld:
        return self._visitors.world

    def choose(self, day: int, user: int, size: int, seen: Sequence[int]) -> tuple[list[int], str]:
        """Return the pictures shown to a visitor, best first, and the version of the bundle.

        Args:
            seen: pictures that the site has shown to this visitor before; they are left out.
        """
        ids = self._world.item_ids
        answer = self._ask(
            "recommend",
            {
                "user": self._world.user_ids[user],
                "features": self._world.features_of(user),
                "k": size,
                "seed": self._visitors.request_seed(day, user),
                "filters": {"exclude_items": [ids[item] for item in seen]},
            },
        )
        return [self._place_of[item["id"]] for item in answer["items"]], answer["version"]

    def tell(self, day: int, place: int, visit: Visit) -> None:
        """Send a visit's events; sent again, they change nothing.

        Args:
            place: of the visit among those of its day, from 0.
        """
        users, ids = self._world.user_ids, self._world.item_ids
        at = day_start(day) + _VISIT_SECONDS * place
        events = [
            {
                "id": f"{day}/{visit.user}/{item}/{kind}",
                "user": users[visit.user],
                "item": ids[item],
                "kind": kind,
                "time": at + (kind == "liked"),
                "position": position,
            }
            for position, item in enumerate(visit.shown, start=1)
            for kind in ("shown", "liked")
            if kind == "shown" or item in visit.liked
        ]
        if events:
            self._ask("events", {"events": events})

    def add_items(self, items: Sequence[int], pictures: Path) -> None:
        """Add new pictures to the server, which recommends them at once; those it has are left."""
        self._connection.close()
        for index in items:
            row = item_row(self._world.items, index)
            picture = (pictures / f"{row['item_id']}.png").read_bytes()
            body = {
                "id": row["item_id"],
                "picture": base64.b64encode(picture).decode(),
                "text": row["words"],
                "title": row["title"],
                "artist": row["artist"],
                "tags": row["tags"].split("|"),
            }
            self._ask("items", body, expected=(_CREATED, _KNOWN))

    def wait_for(self, version: str) -> None:
        """Wait until the server has changed to a bundle.

        Raises:
            UserError: it refuses the bundle, or does not change in two minutes.
        """
        self._connection.close()  # which a server does itself where nothing was asked all night
        ends = time.monotonic() + _SWAP_SECONDS
        while True:
            answer = self._get("/v1/version")
            if answer["version"] == version and not answer["also"]:
                return
            if answer["refused"] or time.monotonic() > ends:
                raise UserError(
                    f"the server at {self._server.address} serves {answer['version']}, expected "
                    f"{version}; it refused: {answer['refused'] or 'nothing'}"
                )
            time.sleep(0.1)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._loop.close()

    def _ask(
        self, route: str, body: Mapping[str, Any], expected: Sequence[int] = (_OK,)
    ) -> dict[str, Any]:
        return self._answer(post(self._server.address, route, body), f"/v1/{route}", expected)

    def _get(self, path: str) -> dict[str, Any]:
        return self._answer(get(self._server.address, path), path, (_OK,))

    def _answer(self, request: Request, path: str, expected: Sequence[int]) -> dict[str, Any]:
        status, content = self._loop.run(self._connection.ask(request))
        if status not in expected:
            said = content.decode(errors="replace")[:500]
            raise UserError(f"http://{self._server.address}{path}: HTTP {status}: {said}")
        answer: dict[str, Any] = json.loads(content)
        return answer
