"""Fork server for processes of tests: libraries are imported once, not by every job and rank.

    python -m tests.warm_jobs LISTENER LIFE

LISTENER is a socket on which every connection is a call. In: one line of JSON with a script, its
arguments and environment, its number of ranks, and the files that take its output. Out: a line with the
process group of the call, and one with its exit code. A forked process runs the same file with the same
arguments, five seconds sooner; ranks find each other by torchrun's variables. The server itself never
computes, so that the fork loses no thread. It ends when nobody holds the other end of the pipe LIFE.
"""

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Job = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = Path(__file__).resolve().parents[1]
_SHARED = "TESSERA_TEST_JOBS"
"""Variable with the server that others may use: the repository whose code it has, =, its socket."""
# All that jobs and workers of tests import, at once or later.
_JOBS = ("demo", "prepare", "embed", "train", "evaluate", "export", "recommend", "compare")
_LATER = ("recsys.run.assembly", "embedding.text.encoder", "embedding.image.encoder", "fbgemm_gpu")
_LATER += ("torch.distributed.optim", "torch.utils.tensorboard", "matplotlib.backends.backend_svg")


class Call:
    """A call that the fork server answers, with what tests ask of a started process."""

    def __init__(self, address: str, request: dict[str, Any]):
        """Args: address: of the server's socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.sendall(json.dumps(request).encode() + b"\n")
            # Unbuffered: what is not read yet is seen by select.
            self.stream = connection.makefile("rb", buffering=0)
        self.pid = int(self.stream.readline())
        """Process whose children are the ranks; the first of their group."""
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.code is None and select.select([self.stream.fileno()], [], [], 0)[0]:
            # Nothing is told where all of it was killed.
            self.code = int(self.stream.readline() or -signal.SIGKILL)
            self.stream.close()
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once there is one.

        Raises:
            TimeoutError: it takes longer; its processes are killed.
        """
        if self.code is None and not select.select([self.stream.fileno()], [], [], timeout)[0]:
            os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"killed after {timeout} s")
        code = self.poll()
        assert code is not None, "it has told its end"
        return code


class WarmJobs:
    """Client of a fork server: one that is shared, else its own, started by the first call."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.process: subprocess.Popen[bytes] | None = None
        self.folder: Path | None = None

    def run(
        self, script: Path, *arguments: str, ranks: int = 0, timeout_seconds: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in forked processes, in a folder of its own; does not raise where it fails.

        Args:
            ranks: processes with torchrun's variables; 0: one without them.

        Raises:
            TimeoutError: it takes longer; its processes are killed.
        """
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="tessera-jobs-"))
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        outputs = [self.folder / "stdout", self.folder / "stderr"]
        for file in outputs:
            file.write_bytes(b"")
        code = self.begin(script, *arguments, ranks=ranks, outputs=outputs).wait(timeout_seconds)
        stdout, stderr = (file.read_text(encoding="utf-8") for file in outputs)
        return subprocess.CompletedProcess([str(script), *arguments], code, stdout, stderr)

    def begin(self, script: Path, *arguments: str, ranks: int = 0, outputs: Sequence[Path]) -> Call:
        """Start a script as `run` does, in the folder of the first output, and return at once.

        Args:
            outputs: files of one folder to which output and errors are added.
        """
        request = {
            "script": str(script),
            "arguments": arguments,
            "ranks": ranks,
            "outputs": [str(file) for file in outputs],
            "environment": dict(os.environ),
        }
        return Call(_shared_address() or self.start(), request)

    def share(self) -> None:
        """Start the server, for processes of this repository's code that are started from now on too.

        Where one is shared already, nothing is started.
        """
        if _shared_address() is None:
            os.environ[_SHARED] = f"{REPOSITORY}={self.start()}"

    def start(self) -> str:
        """Start the server if it does not run, and return the address of its socket."""
        if self.process is None:
            self.place = tempfile.TemporaryDirectory(prefix="tessera-fork-")
            self.address = str(Path(self.place.name) / "socket")
            theirs, self.life = os.pipe()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(self.address)
                listener.listen()
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.warm_jobs", str(listener.fileno()), str(theirs)],
                    pass_fds=[listener.fileno(), theirs],
                    cwd=REPOSITORY,
                    start_new_session=True,
                )
            os.close(theirs)
            atexit.register(self.close)
        return self.address

    def close(self) -> None:
        """Let the server end, if this process started one."""
        if self.process is not None:
            os.close(self.life)
            self.process.wait()
            self.process = None
            self.place.cleanup()


def _shared_address() -> str | None:
    """Return the socket of the shared server, if it has the code of this repository and not of a copy."""
    repository, _, address = os.environ.get(_SHARED, "").rpartition("=")
    return address if repository == str(REPOSITORY) else None


WARM = WarmJobs()


def main(arguments: Sequence[str]) -> None:
    """Import, then fork processes for every call until nobody holds the pipe any more."""
    listener = socket.socket(fileno=int(arguments[0]))
    life = int(arguments[1])
    for name in _JOBS:
        runpy.run_path(str(REPOSITORY / "launch" / f"{name}.py"), run_name="imported")
    for module in _LATER:
        __import__(module)
    Image.init()  # all formats, which the first picture of a process imports
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that answer
    while life not in select.select([listener, life], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(life)
            _answer(connection)
            return
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Fork the processes of one call, in a group of their own, and tell how they ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    stream = connection.makefile("rw", encoding="utf-8")
    call = json.loads(stream.readline())
    stream.write(f"{os.getpid()}\n")
    stream.flush()
    pids = []
    for variables in _variables_of_ranks(call.pop("ranks")):
        pid = os.fork()
        if pid == 0:
            connection.close()
            call["environment"] |= variables
            _become(**call)
            return
        pids.append(pid)
    stream.write(f"{_wait_for(pids)}\n")
    stream.flush()
    os._exit(0)  # what the imports registered for the end is not this process's to do


def _variables_of_ranks(ranks: int) -> list[dict[str, str]]:
    """Return what torchrun sets for each rank on one host; nothing for a process without ranks."""
    if not ranks:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _wait_for(pids: list[int]) -> int:
    """Return 0 once all have ended well, else the first code that is not.

    Then the others are killed, unless that one was stopped by a signal, which all have.
    """
    first = 0
    left = set(pids)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in left if code != 128 + signal.SIGTERM else ():
                os.kill(other, signal.SIGKILL)
    return first


def _become(
    script: str, arguments: list[str], outputs: list[str], environment: dict[str, str]
) -> None:
    """Run a script in this forked process, which then ends as any Python program does."""
    for descriptor, file in zip((1, 2), outputs, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(outputs[0]).parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
