"""Problem details: errors of the HTTP interface as application/problem+json (RFC 9457).

In: a status and a sentence, or pydantic's list of errors. Out: a response that says
what was given and what was expected. A client's mistake is never answered with a 5xx.
"""

import json
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel, ValidationError

MEDIA_TYPE = "application/problem+json"
_MAX_SHOWN = 100
_MAX_ERRORS = 10


class InvalidField(BaseModel):
    """One value of a request that does not fit."""

    field: str
    """Its path in the request: items.3, filters.include."""
    given: str
    """Its start, as text."""
    expected: str


class Problem(BaseModel):
    """An error: RFC 9457's members, the id of the request, and every value that does not fit."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[InvalidField] = []


class ProblemError(Exception):
    """A request is answered with a problem."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: list[InvalidField] | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or []
        self.headers = headers or {}

    def response(self, request_id: str | None) -> Response:
        """Return it as a response."""
        body = problem_json(self.status, self.detail, request_id, self.errors)
        return Response(body, self.status, self.headers, media_type=MEDIA_TYPE)


def problem_json(
    status: int, detail: str, request_id: str | None, errors: list[InvalidField] | None = None
) -> bytes:
    """Return the JSON text of a problem."""
    title = HTTPStatus(status).phrase
    problem = Problem(
        title=title, status=status, detail=detail, request_id=request_id, errors=errors or []
    )
    return problem.model_dump_json().encode()


def busy(detail: str) -> ProblemError:
    """Return the problem of a request that the server has no time for now."""
    return ProblemError(503, f"{detail}; try again later", headers={"Retry-After": "1"})


def fault() -> ProblemError:
    """Return the problem of a request that met a fault of ours."""
    return ProblemError(500, "a fault of the server; its log says more, by this request_id")


def invalid_body(error: ValidationError) -> ProblemError:
    """Return the problem of a body that does not fit its type."""
    return _invalid(error.errors(include_url=False, include_context=False))


def invalid_parameters(errors: list[Any]) -> ProblemError:
    """Return the problem of a path or query that does not fit, by FastAPI's list of errors."""
    return _invalid(errors)


def _invalid(errors: list[Any]) -> ProblemError:
    fields = [
        InvalidField(
            field=".".join(map(str, error["loc"])) or "body",
            given=_shown(error["input"]),
            expected=error["msg"],
        )
        for error in errors[:_MAX_ERRORS]
    ]
    first = fields[0]
    detail = f"{first.field}: {first.given} given; {first.expected}"
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1} more)"
    is_syntax = errors[0]["type"] == "json_invalid"
    return ProblemError(400 if is_syntax else 422, detail, fields)


def _shown(given: Any) -> str:
    """Return the start of a value as JSON, in bounded time for a value of any size."""
    if isinstance(given, str | bytes):
        text = (
            json.dumps(given[:_MAX_SHOWN].decode("utf-8", "replace"))
            if isinstance(given, bytes)
            else json.dumps(given[:_MAX_SHOWN])
        )
        return text if len(given) <= _MAX_SHOWN else f"{text[:-1]}..., {len(given):,} long"
    if isinstance(given, list | tuple):
        return f"a list of {len(given):,}"
    if isinstance(given, dict):
        return f"an object with {len(given):,} members"
    return str(json.dumps(given, default=repr))[:_MAX_SHOWN]
