"""Runs on four ranks of two pretended hosts: what their first ranks read, and an error of one of them."""

import json
import os

from recsys.errors import UserError
from recsys.runtime.collectives import gather
from recsys.runtime.env import start, stop
from recsys.runtime.hosts import once_a_host

RANKS_A_HOST = 2


def main() -> None:
    """Print what every rank was answered and how often it worked, then what it raised."""
    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": str(rank % RANKS_A_HOST), "LOCAL_WORLD_SIZE": str(RANKS_A_HOST)}
    env = start("cpu", timeout_seconds=60)
    calls: list[int] = []

    def work() -> str:
        calls.append(rank)
        return f"read by rank {rank}"

    def fail_on_the_second() -> None:
        if rank == RANKS_A_HOST:
            raise UserError("disk of the second host")

    result = {"answer": once_a_host(work), "calls": calls, "raised": None}
    try:
        once_a_host(fail_on_the_second)
    except UserError as error:
        result["raised"] = str(error)
    ranks = gather(lambda: result)
    if env.is_first:
        print("RESULT " + json.dumps(ranks), flush=True)
    stop()


if __name__ == "__main__":
    main()
