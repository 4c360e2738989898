"""Bodies of requests: read within limits of size and time, and checked by their type."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from recsys.serving.server.config import ServeConfig
from recsys.serving.server.problems import ProblemError, busy, invalid_body

T = TypeVar("T", bound=BaseModel)


class BodyReader:
    """Reads the bodies of one server."""

    def __init__(self, config: ServeConfig):
        self._config = config
        self._num_uploads = 0

    async def read(self, request: Request, schema: type[T], *, may_upload: bool) -> T:
        """Return a body as an object of its type.

        Args:
            may_upload: it may have pictures, and so max_upload_bytes.

        Raises:
            ProblemError: the body is too large, too slow, no JSON, or does not fit the type.
        """
        content = await self._bytes(request, may_upload)
        try:
            return schema.model_validate_json(content)
        except ValidationError as error:
            raise invalid_body(error) from error

    async def _bytes(self, request: Request, may_upload: bool) -> bytes:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            # A page of another origin may send forms without asking, but not JSON.
            raise ProblemError(
                415,
                f"Content-Type {media_type[:100]!r} given; expected application/json "
                f"(curl --json '...')",
            )
        usual = self._config.max_body_bytes
        most = max(usual, self._config.max_upload_bytes) if may_upload else usual
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > most:
            raise _too_large(stated, most)
        pieces: list[bytes] = []
        num_bytes = 0
        is_upload = False
        try:
            async with asyncio.timeout(self._config.body_seconds):
                async for piece in request.stream():
                    pieces.append(piece)
                    num_bytes += len(piece)
                    if num_bytes > most:
                        raise _too_large("more", most)
                    if num_bytes > usual and not is_upload:
                        if self._num_uploads >= self._config.max_uploads:
                            raise busy(f"{self._num_uploads} uploads are being read already")
                        is_upload = True
                        self._num_uploads += 1
        except TimeoutError as error:
            seconds = self._config.body_seconds
            raise ProblemError(408, f"the body did not arrive within {seconds:g} s") from error
        except ClientDisconnect as error:
            raise ProblemError(400, "the connection closed within the body") from error
        finally:
            self._num_uploads -= is_upload
        return b"".join(pieces)


def _too_large(given: str, most: int) -> ProblemError:
    return ProblemError(413, f"a body of {given} bytes given; expected at most {most:,}")
