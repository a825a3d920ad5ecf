"""Rows by their numbers, against plain indexing and torch's own gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recsys_embed.tables.gather import gather


@pytest.mark.parametrize("shape", [(7,), (5, 3), (0,), (2, 0), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int16])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_it_is_indexing(width: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    source = torch.arange(11 * width).view(11, width).to(dtype)
    rows = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(3))
    for numbers in (rows, rows.to(torch.int32), rows.t() if rows.dim() == 2 else rows):
        read = gather(source, numbers)
        assert read.dtype == dtype
        assert torch.equal(read, source[numbers.long()])
        assert read.is_contiguous()


@pytest.mark.parametrize("width", [1, 3])
def test_its_gradient_is_that_of_an_embedding_to_the_bit(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 20, (6, 500), generator=generator).t()  # each row many times over: the order of sums counts
    given = torch.randn(500, 6, width, generator=generator)
    gradients = []
    for read in (gather, lambda source, numbers: F.embedding(numbers, source)):
        source = torch.zeros(20, width, requires_grad=True)
        read(source, rows).backward(given)
        gradients.append(source.grad)
    assert gradients[0] is not None
    assert torch.equal(*gradients)
