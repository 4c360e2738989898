"""Structured log: one JSON object a line on standard output."""

import json
import sys
import time
from typing import Any

_ENCODER = json.JSONEncoder(default=str)


def log(event: str, **fields: Any) -> None:
    """Write one line: time in seconds since 1970, the event's name, and its fields."""
    line = _ENCODER.encode({"time": round(time.time(), 3), "event": event, **fields})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
