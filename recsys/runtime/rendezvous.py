"""Key-value store namespaced per restart of torchrun, so that workers never read stale keys.

Called by env.py. Since torch 2.5 the workers of all rounds share the agent's store
(pytorch/pytorch#135712): a restarted worker may read there the address of one that was killed, and
the restart fails, or with NCCL hangs. No variable distinguishes the rounds: the restart count is
each agent's own. So rank 0 draws a name for the round, and everybody's keys lie below it.
"""

import time
import uuid

import torch.distributed as dist

_POLL_SECONDS = 0.01


def fresh_store(
    store: dist.Store, *, rank: int, world_size: int, timeout_seconds: float
) -> dist.Store:
    """Return a part of `store` that only the ranks of this round know; all of them call this.

    A rank asks under a name that is drawn, so the answer it reads is no earlier one; rank 0 answers
    whoever asks, and whoever asks anew, until all ranks of this round have taken its answer.

    Raises:
        TimeoutError: on rank 0, when a rank does not come.
    """
    if rank:
        question = uuid.uuid4().hex
        store.set(f"round/question/{rank}", question)
        name = store.get(f"round/answer/{question}").decode()
        store.set(f"round/{name}/{rank}", "taken")
        return dist.PrefixStore(name, store)
    name = uuid.uuid4().hex
    answered: dict[int, bytes] = {}
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout_seconds
    while missing:
        for other in sorted(missing):
            if store.check([f"round/{name}/{other}"]):
                missing.discard(other)
            elif store.check([f"round/question/{other}"]):
                question_bytes = store.get(f"round/question/{other}")
                if answered.get(other) != question_bytes:
                    store.set(f"round/answer/{question_bytes.decode()}", name)
                    answered[other] = question_bytes
        if time.monotonic() > deadline:
            raise TimeoutError(f"ranks {sorted(missing)} did not come within {timeout_seconds:g} s")
        time.sleep(_POLL_SECONDS)
    return dist.PrefixStore(name, store)
