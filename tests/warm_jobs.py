"""Fork server for processes of tests: libraries are imported once, not by every job and rank.

    python -m tests.warm_jobs FD

In: over the socket FD, one line of JSON a call: a script, its arguments and environment, its number of
ranks, and the files that take its output. Out: one line with its exit code. A forked process runs the
same file with the same arguments, five seconds sooner; ranks find each other by torchrun's variables.
The server itself never computes, so that the fork loses no thread.
"""

import atexit
import gc
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

Job = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = Path(__file__).resolve().parents[1]
# All that jobs and workers of tests import, at once or later.
_JOBS = ("demo", "prepare", "embed", "train", "evaluate", "export", "recommend", "compare")
_LATER = ("recsys.run.assembly", "embedding.text.encoder", "embedding.image.encoder", "fbgemm_gpu")


class WarmJobs:
    """Client of one fork server, which is started by the first call and ends with this process."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.process: subprocess.Popen[bytes] | None = None

    def run(
        self, script: Path, *arguments: str, ranks: int = 0, timeout_seconds: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in forked processes, in a folder of its own; does not raise where it fails.

        Args:
            ranks: processes with torchrun's variables; 0: one without them.

        Raises:
            TimeoutError: it takes longer; the server and its processes are killed.
        """
        if self.process is None:
            self._start()
        outputs = [str(self.folder / "stdout"), str(self.folder / "stderr")]
        request = {
            "script": str(script),
            "arguments": arguments,
            "ranks": ranks,
            "outputs": outputs,
            "environment": dict(os.environ),
        }
        self.socket.settimeout(timeout_seconds)
        try:
            self.stream.write(json.dumps(request) + "\n")
            self.stream.flush()
            code = int(self.stream.readline())
        except TimeoutError:
            self.close()
            raise
        stdout, stderr = (Path(file).read_text(encoding="utf-8") for file in outputs)
        return subprocess.CompletedProcess([str(script), *arguments], code, stdout, stderr)

    def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tessera-jobs-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_jobs", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self.stream = self.socket.makefile("rw", encoding="utf-8")

    def close(self) -> None:
        """Kill the server and the processes that it runs; the next call starts another."""
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stream.close()
        self.socket.close()
        self.process = None


WARM = WarmJobs()


def main(arguments: Sequence[str]) -> None:
    """Import, then fork processes for every call until the client is gone."""
    control = socket.socket(fileno=int(arguments[0]))
    for name in _JOBS:
        runpy.run_path(str(REPOSITORY / "launch" / f"{name}.py"), run_name="imported")
    for module in _LATER:
        __import__(module)
    gc.collect()
    gc.freeze()
    stream = control.makefile("rw", encoding="utf-8")
    for line in stream:
        call = json.loads(line)
        for file in call["outputs"]:
            Path(file).write_bytes(b"")
        pids = []
        for variables in _variables_of_ranks(call.pop("ranks")):
            pid = os.fork()
            if pid == 0:
                control.close()
                call["environment"] |= variables
                _become(**call)
                return
            pids.append(pid)
        stream.write(f"{_wait_for(pids)}\n")
        stream.flush()


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
    """Return 0 once all have ended well, else the first code that is not; then the others are killed."""
    first = 0
    left = set(pids)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in left:
                os.kill(other, signal.SIGKILL)
    return first


def _become(
    script: str, arguments: list[str], outputs: list[str], environment: dict[str, str]
) -> None:
    """Run a script in this forked process, which then ends as any Python program does."""
    for descriptor, file in zip((1, 2), outputs, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(outputs[0]).parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
