"""Frames: messages between the front process and its workers, as pickles with their length before them.

Both ends are processes of one server on one machine, connected by a socket pair. Called by pool.py,
zygote.py and worker.py.
"""

import asyncio
import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")


def dumps(message: Any) -> bytes:
    """Return a message as bytes."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def loads(content: bytes | bytearray) -> Any:
    """Return the message of bytes that another process of this server wrote."""
    return pickle.loads(content)


def packed(message: Any) -> bytes:
    """Return a message as one frame."""
    content = dumps(message)
    return _LENGTH.pack(len(content)) + content


def send(connection: socket.socket, message: Any) -> None:
    """Send a message over a blocking socket."""
    connection.sendall(packed(message))


def receive(connection: socket.socket) -> Any:
    """Return the next message of a blocking socket.

    Raises:
        EOFError: the other end is closed.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return loads(_exactly(connection, length))


async def receive_async(reader: asyncio.StreamReader) -> Any:
    """Return the next message of a stream.

    Raises:
        EOFError, OSError: the other end is closed or gone.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return loads(await reader.readexactly(length))


def _exactly(connection: socket.socket, num_bytes: int) -> bytearray:
    content = bytearray(num_bytes)
    view = memoryview(content)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise EOFError("the other end is closed")
        view = view[received:]
    return content
