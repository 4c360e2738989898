"""Rounds of ranks that meet in one store, which keeps everything that earlier rounds wrote."""

import threading

import pytest
import torch.distributed as dist

from recsys.runtime.rendezvous import fresh_store


def meet(store, world_size, order):
    """All ranks meet at once, started in this order; returns what each reads of rank 0's key."""
    read = {}

    def rank_of(rank):
        own = fresh_store(store, rank=rank, world_size=world_size, timeout_seconds=20)
        if rank == 0:
            own.set("address", f"of round {id(order)}")
        read[rank] = own.get("address").decode()

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return read, f"of round {id(order)}"


def test_nobody_reads_what_an_earlier_round_wrote():
    store = dist.HashStore()
    for order in ([0, 1, 2], [2, 1, 0], [1, 0], [0], [2, 0, 1], [1, 2, 0]):
        read, expected = meet(store, len(order), order)
        assert read == dict.fromkeys(order, expected)


def test_a_rank_that_was_killed_while_asking_is_not_waited_for():
    """Its question stays in the store; the rank that took its place asks anew."""
    store = dist.HashStore()
    store.set("round/question/1", "of a rank that is gone")
    read, expected = meet(store, 2, [0, 1])
    assert read == {0: expected, 1: expected}


def test_a_missing_rank_is_named():
    with pytest.raises(TimeoutError, match=r"ranks \[1, 2\] did not come within 0.1 s"):
        fresh_store(dist.HashStore(), rank=0, world_size=3, timeout_seconds=0.1)
