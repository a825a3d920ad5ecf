"""Where the ranks of a run meet: a part of their store that no earlier start of theirs has written to.

torchrun keeps one store over its restarts, and in it the addresses of ranks that are dead: those that are started again
would try to reach them. Its count of restarts tells the starts apart on one machine only. So
every process takes a name at random, and the name of the first rank's is that of the part.
"""

from __future__ import annotations

import datetime
import json
import secrets
import time

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_PAUSE_SECONDS = 0.05


def meet(seconds: float) -> tuple[Store, int, int]:
    """The store, this process's rank and the number of ranks, as ``init_process_group`` takes them.

    Waits so long for the others, which may take their time to start.

    Raises:
        torch.distributed.DistError: not all ranks came.
    """
    wait = datetime.timedelta(seconds=seconds)
    store, rank, world = next(rendezvous("env://", timeout=wait))
    store.set_timeout(wait)
    return PrefixStore(room(PrefixStore("recsys_embed", store), rank, world, seconds), store), rank, world


def room(store: Store, rank: int, world: int, seconds: float) -> str:
    """The name that the first rank took in this start of all ranks.

    The first one lists the names that it finds until every rank has come to it. A rank knows the list of this start by
    its own name, which is in no earlier one.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + seconds
    store.set(f"name/{rank}", own)
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("names", json.dumps([store.get(f"name/{one}").decode() for one in range(world)]))
            if store.check([f"{own}/{one}" for one in range(1, world)]):
                return own
        elif (names := json.loads(store.get("names")))[rank] == own:
            store.set(f"{names[0]}/{rank}", "here")
            return str(names[0])
        time.sleep(_PAUSE_SECONDS)
    raise DistStoreError(f"timed out: not all of {world} ranks came within {seconds:g} s")
