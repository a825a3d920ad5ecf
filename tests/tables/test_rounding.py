"""Stored weights: exact where they are stored, saturated, and rounded without bias."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import ConfigError
from recsys_embed.storage import STORAGE_TYPES, Storage
from recsys_embed.tables.rounding import TORCH_TYPES, add, dequantise, nearest, noise_of, noise_seed, quantum, spacing

LOW = [name for name in STORAGE_TYPES if name != "fp32"]
HALVES = ["fp16", "bf16"]


def noise(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """What the tables use: rows of one table at one step."""
    return noise_of(torch.full((shape[0],), noise_seed("t", seed)), torch.arange(shape[0]), shape[1], 1)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("midpoint", [0.0, 1.0, -0.3])
@pytest.mark.parametrize("scale", [0.01, 0.01 / 256, 1e-5, 3.0])
def test_every_integer_comes_back(dtype: str, midpoint: float, scale: float):
    storage = Storage(dtype, scale, midpoint)
    low, high = storage.limits
    every = torch.arange(low, high + 1).to(TORCH_TYPES[dtype])
    assert torch.iinfo(every.dtype).min == low
    assert torch.iinfo(every.dtype).max == high
    weights = dequantise(every, scale, midpoint)
    torch.testing.assert_close(
        weights.double(), every.double() * scale + midpoint, rtol=1e-6, atol=2e-7 * abs(midpoint)
    )
    assert torch.equal(nearest(weights, every.dtype, scale, midpoint), every)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_comes_back_and_its_neighbour_is_one_spacing_away(dtype: str):
    every = torch.arange(2**15).to(torch.int16).view(TORCH_TYPES[dtype])  # zero and everything positive, in order
    every = every[torch.isfinite(every)]
    weights = dequantise(every, 1.0, 0.0)
    assert torch.equal(nearest(weights, every.dtype, 1.0, 0.0), every)
    assert torch.equal(weights[1:].double() - weights[:-1].double(), spacing(weights[:-1], every.dtype).double())
    for sign in (1, -1):
        still = add(every.unsqueeze(1) * sign, torch.zeros(len(every), 1), noise((len(every), 1)), 1.0)
        assert torch.equal(still.squeeze(1), every * sign)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_integers_saturate_and_do_not_wrap(dtype: str):
    storage = Storage.of(dtype)
    low, high = storage.limits
    kind = TORCH_TYPES[dtype]
    far = torch.tensor([1e9, -1e9, math.inf, -math.inf, (high + 0.7) * storage.scale])
    assert nearest(far, kind, storage.scale, 0.0).tolist() == [high, low, high, low, high]
    edge = torch.tensor([[high, low, high, low, high]], dtype=kind)
    change = torch.tensor([[1e9, -1e9, 0.4 * storage.scale, -0.4 * storage.scale, -math.inf]])
    assert add(edge, change, torch.full((1, 5), 0.1), storage.scale).tolist() == [[high, low, high, low, low]]


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_saturate_at_their_largest_number(dtype: str):
    kind = TORCH_TYPES[dtype]
    largest = torch.finfo(kind).max
    assert nearest(torch.tensor([math.inf, -math.inf]), kind, 1.0, 0.0).tolist() == [largest, -largest]
    stored = torch.tensor([[largest, -largest, largest]], dtype=kind)
    change = torch.tensor([[largest / 3, -math.inf, spacing(torch.tensor(largest), kind).item() * 0.9]])
    assert add(stored, change, torch.full((1, 3), 0.1), 1.0).tolist() == [[largest, -largest, largest]]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("start", [0.0, 0.03, -0.73, 1.0])
@pytest.mark.parametrize("fraction", [1e-3, 0.25, 0.5, -0.9, 3.3])
def test_stochastic_rounding_is_unbiased(dtype: str, start: float, fraction: float):
    """The mean over many draws is the exact sum, to four standard errors; and all draws are its two neighbours."""
    storage, shape = Storage.of(dtype), (4000, 50)
    stored = nearest(torch.full(shape, start), TORCH_TYPES[dtype], storage.scale, 0.0)
    before = dequantise(stored, storage.scale, 0.0).double()
    unit = quantum(before.float(), storage).double()
    change = (fraction * unit).float()
    after = dequantise(add(stored, change, noise(shape), storage.scale), storage.scale, 0.0).double()
    goal = before + change.double()
    assert bool(((after - goal).abs() < unit * (1 + 1e-4)).all())
    error = ((after - goal) / unit).mean().item()
    part = abs(fraction) % 1
    assert abs(error) < 4 * math.sqrt(part * (1 - part) / after.numel()) + 1e-6


@given(weight=st.floats(-1e4, 1e4, width=32), change=st.floats(-1e3, 1e3, width=32), dtype=st.sampled_from(HALVES))
def test_halves_are_one_of_the_two_neighbours(weight: float, change: float, dtype: str):
    """Whichever the weight: subnormal, a power of two, negative."""
    kind = TORCH_TYPES[dtype]
    stored = torch.full((1, 64), weight).to(kind)
    goal = stored.float() + torch.full((1, 64), change)
    after = add(stored, torch.full((1, 64), change), noise((1, 64)), 1.0)
    unit = spacing(goal, kind)
    low = (goal.double() / unit.double()).floor() * unit.double()
    assert bool(((after.double() == low) | (after.double() == low + unit.double())).all())


@pytest.mark.parametrize("dtype", LOW)
def test_twenty_tiny_updates_are_not_lost(dtype: str):
    """20 updates of 1e-5 on the weight 1: rounding to nearest loses every one, stochastic rounding none on average."""
    storage, shape = Storage.of(dtype), (20_000, 20)
    start = nearest(torch.ones(shape), TORCH_TYPES[dtype], storage.scale, 0.0)
    by_chance, by_nearest = start, start
    for step in range(20):
        draws = noise_of(torch.zeros(shape[0], dtype=torch.int64), torch.arange(shape[0]), shape[1], step)
        by_chance = add(by_chance, torch.full(shape, 1e-5), draws, storage.scale)
        if dtype != "int16":  # whose step of 3.9e-5 is within reach
            moved = dequantise(by_nearest, storage.scale, 0.0) + 1e-5
            by_nearest = nearest(moved, start.dtype, storage.scale, 0.0)
    assert torch.equal(by_nearest, start)
    begin = dequantise(start, storage.scale, 0.0).double().mean().item()
    gained = dequantise(by_chance, storage.scale, 0.0).double().mean().item() - begin
    unit = quantum(torch.tensor(1.0), storage).item()
    error = math.sqrt(20 * 1e-5 * unit / start.numel())
    assert abs(gained - 20e-5) < 5 * error
    assert 5 * error < 10e-5  # the test can tell all from nothing


# --- noise ---------------------------------------------------------------------------------------------------


def test_noise_is_uniform_within_and_across():
    draws = noise((4000, 16)).double()
    assert draws.min() > 0
    assert draws.max() < 1
    assert abs(draws.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / draws.numel())
    counts = torch.histc(draws.float(), bins=64, min=0, max=1)
    assert ((counts - 1000).square() / 1000).sum().item() < 63 + 5 * math.sqrt(2 * 63)
    # Neighbouring rows, columns, steps and tables know nothing of each other.
    other_step = noise_of(torch.full((4000,), noise_seed("t", 0)), torch.arange(4000), 16, 2).double()
    other_table = noise_of(torch.full((4000,), noise_seed("u", 0)), torch.arange(4000), 16, 1).double()
    for one, other in (
        (draws[1:], draws[:-1]),
        (draws[:, 1:], draws[:, :-1]),
        (draws, other_step),
        (draws, other_table),
        (draws, noise((4000, 16), seed=1).double()),
    ):
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(one.numel())


def test_noise_is_of_the_row_and_not_of_its_company():
    seeds = torch.tensor([noise_seed("a", 3), noise_seed("b", 3)])
    rows = torch.tensor([5, 2**31 - 2])
    both = noise_of(seeds, rows, 7, 12)
    for place in (0, 1):
        assert torch.equal(noise_of(seeds[place : place + 1], rows[place : place + 1], 7, 12)[0], both[place])
    assert torch.equal(noise_of(seeds.flip(0), rows.flip(0), 7, 12).flip(0), both)
    # A known answer: any change would change every stored run.
    assert noise_of(torch.tensor([noise_seed("t", 0)]), torch.tensor([3]), 3, 1).tolist() == [
        [0.5526309609413147, 0.11443454027175903, 0.9383395314216614]
    ]


# --- the setting ---------------------------------------------------------------------------------------------


def test_a_storage_is_checked():
    with pytest.raises(ConfigError, match="one of fp32, fp16"):
        Storage("int4")  # type: ignore[arg-type]
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="scale is positive"):
            Storage("int8", scale)
    with pytest.raises(ConfigError, match="not for bf16"):
        Storage.of("bf16", 0.1)
    for dtype in STORAGE_TYPES:
        assert Storage.of(dtype).bytes == TORCH_TYPES[dtype].itemsize
    assert Storage.of("bf16").centred(1.0) == Storage.of("bf16")
