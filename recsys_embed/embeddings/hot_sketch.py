"""HotSketch: which ids matter most, in bounded memory (Zhang et al., 2312.03256, section 3.1).

Shapes: w buckets of c cells, a :class:`~recsys_embed.embeddings.index_maps.Sketch`; n distinct keys.

A bucket is a SpaceSaving summary of the ids that hash to it. Its invariants, for cells without a pointer:

- the score of a key that is held is at least its true sum;
- the true sum of a key that is not held is at most the least score of its bucket;
- the scores of a bucket sum to at most what was inserted.

Hence (Theorem 3.1) an id with more than a share g of all importance is held with probability above
``1 - (1 - g) / ((c - 1) g w)``: to be left out, the others of its bucket would need (c - 1) times its own.

DIFF: the paper inserts one occurrence after another, on one thread. Here the sums of a whole interval are inserted at
once, as a merge of SpaceSaving summaries (Cafaro, Pulimeno and Tempesta, 1401.0702): held keys gain their sums, a new
one enters with the least score of its bucket plus its sum, and the c best stay. The invariants hold as before, the
result depends on no order of arrival, and of one key it is what SpaceSaving gives.
DIFF: buckets are a mixing hash of the key, where the authors' code takes id mod w, so that strided ids share a bucket.

As in the authors' code, a key with a pointer keeps its cell until it is demoted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_embed.embeddings.index_maps import Sketch


def insert(sketch: Sketch, keys: Tensor, scores: Tensor) -> Tensor:
    """Add scores ``[n]`` float32, all positive, to distinct keys ``[n]`` int64.

    Returns:
        ``[w, c]`` bool: cells whose key was held before and has been added to.
    """
    bucket = sketch.buckets_of(keys)
    here = sketch.keys[bucket] == keys.unsqueeze(1)
    held, cell = here.any(1), here.to(torch.uint8).argmax(1)
    hit = torch.zeros_like(sketch.keys, dtype=torch.bool)
    hit[bucket[held], cell[held]] = True
    sketch.scores[bucket[held], cell[held]] += scores[held]
    _admit(sketch, bucket[~held], keys[~held], scores[~held], hit)
    return hit


def _admit(sketch: Sketch, bucket: Tensor, keys: Tensor, scores: Tensor, hit: Tensor) -> None:
    """Let new keys compete with the cells of their buckets that have no pointer; ``hit`` moves with its cells."""
    touched, inverse = torch.unique(bucket, return_inverse=True)
    free = sketch.pointers[touched] < 0
    least = sketch.scores[touched].masked_fill(~free, torch.inf).amin(1)
    places = (touched.unsqueeze(1) * free.shape[1] + torch.arange(free.shape[1], device=free.device))[free]
    capacity = free.sum(1)

    group = torch.cat([torch.arange(touched.numel(), device=free.device).repeat_interleave(capacity), inverse])
    estimates = torch.cat([sketch.scores.view(-1)[places], least[inverse] + scores])
    names = torch.cat([sketch.keys.view(-1)[places].to(torch.int64), keys])
    hits = torch.cat([hit.view(-1)[places], torch.zeros_like(keys, dtype=torch.bool)])

    # Best first within each bucket, ties by key: a total order, whatever the order of arrival. The bits of floats that
    # are not negative are in the order of their values.
    order = names.argsort(stable=True)
    order = order[(group * 2**32 - estimates.float().view(torch.int32))[order].argsort(stable=True)]
    ends = torch.bincount(group, minlength=touched.numel()).cumsum(0)
    group = group[order]
    starts = torch.nn.functional.pad(ends, (1, 0))[group]
    kept = order[torch.arange(order.numel(), device=free.device) - starts < capacity[group]]

    # As many are kept as there are free cells, and both are in the order of buckets.
    sketch.keys.view(-1)[places] = names[kept].to(sketch.keys.dtype)
    sketch.scores.view(-1)[places] = estimates[kept]
    hit.view(-1)[places] = hits[kept]


def decay(sketch: Sketch, factor: float, threshold: float) -> None:
    """Scale all scores; a pointer whose score falls below ``threshold`` is taken back."""
    sketch.scores.mul_(factor)
    sketch.pointers[sketch.scores < threshold] = -1


def promote(sketch: Sketch, eligible: Tensor, rows: int) -> Tensor:
    """Give the best of the ``eligible [w, c]`` cells without a pointer those of ``rows`` rows that are free.

    Returns:
        The keys ``[m]`` int64 that got one; their pointers are set.
    """
    pointers, keys = sketch.pointers.view(-1), sketch.keys.view(-1)
    taken = torch.zeros(rows, dtype=torch.bool, device=pointers.device)
    taken[pointers[pointers >= 0].long()] = True
    free = (~taken).nonzero().view(-1)
    cells = (eligible.view(-1) & (pointers < 0)).nonzero().view(-1)
    cells = cells[keys[cells].argsort(stable=True)]
    cells = cells[sketch.scores.view(-1)[cells].argsort(descending=True, stable=True)][: free.numel()]
    pointers[cells] = free[: cells.numel()].to(pointers.dtype)
    return keys[cells].to(torch.int64)
