"""Ranks that start again in a store that remembers earlier starts."""

from __future__ import annotations

import datetime
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from recsys_embed.rendezvous import room

WORLD = 3


def start(store: dist.Store, order: tuple[int, ...]) -> set[str]:
    """The rooms that ranks, coming in some order, agree on."""
    turns = [threading.Event() for _ in order]

    def come(place: int) -> str:
        turns[place].wait()
        threading.Timer(0.02, turns[place + 1].set if place + 1 < WORLD else lambda: None).start()
        return room(store, order[place], WORLD, 30)

    with ThreadPoolExecutor(WORLD) as pool:
        waiting = [pool.submit(come, place) for place in range(WORLD)]
        turns[0].set()
        return {one.result() for one in waiting}


def test_every_start_has_a_room_of_its_own_whoever_comes_first() -> None:
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=30))
    rooms = [start(store, order) for order in itertools.permutations(range(WORLD))]
    assert all(len(one) == 1 for one in rooms)
    assert len(set.union(*rooms)) == len(rooms)


def test_a_start_that_ended_before_all_had_come_disturbs_none() -> None:
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=0.2))
    with pytest.raises(dist.DistError):
        room(store, 0, WORLD, 0.2)
    with pytest.raises(dist.DistError):
        room(store, 2, WORLD, 0.2)
    store.set_timeout(datetime.timedelta(seconds=30))
    assert len(start(store, (1, 2, 0))) == 1
