"""The models against slow float64 loops written from their papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recsys_embed.config import DCNv2Config, DLRMConfig, parse_config
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.models import DLRM, DCNv2, build_model
from recsys_embed.recommender import build_recommender
from recsys_embed.testing import ModelContract


class TestDCNv2(ModelContract):
    def build(self, num_features: int, num_dense: int, dim: int) -> nn.Module:
        return DCNv2(num_features, num_dense, dim=dim)


class TestDCNv2OfOneLayer(ModelContract):
    def build(self, num_features: int, num_dense: int, dim: int) -> nn.Module:
        return DCNv2(num_features, num_dense, dim=dim, cross_layers=1, hidden=(192,), dropout=0.1)


class TestDLRM(ModelContract):
    def build(self, num_features: int, num_dense: int, dim: int) -> nn.Module:
        return DLRM(num_features, num_dense, dim=dim)


def slow_mlp(x: list[float], layers: nn.Module) -> list[float]:
    for layer in layers:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            x = slow_linear(x, layer)
            x = [max(0.0, value) for value in x]
    return x


def slow_linear(x: list[float], layer: nn.Linear) -> list[float]:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return [float(bias[o]) + sum(float(weight[o, i]) * x[i] for i in range(len(x))) for o in range(len(bias))]


@pytest.mark.parametrize(("features", "dense"), [(3, 2), (2, 0), (1, 0)])
@pytest.mark.parametrize("cross_layers", [1, 3])
def test_dcn_v2_oracle(features: int, dense: int, cross_layers: int) -> None:
    model = DCNv2(features, dense, dim=4, cross_layers=cross_layers, hidden=(6, 5)).double()
    generator = np.random.default_rng(0)
    vectors, columns = generator.normal(size=(5, features, 4)), generator.normal(size=(5, dense))
    expected = []
    for sample in range(5):
        x0 = [float(v) for row in vectors[sample] for v in row] + [float(v) for v in columns[sample]]
        x = x0
        for layer in model.cross:
            product = slow_linear(x, layer.linear)  # type: ignore[arg-type]
            x = [x0[i] * product[i] + x[i] for i in range(len(x0))]
        expected += slow_linear(slow_mlp(x, model.deep), model.logit)
    got = model(torch.from_numpy(vectors), torch.from_numpy(columns)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(("features", "dense"), [(3, 2), (4, 0), (1, 1)])
def test_dlrm_oracle(features: int, dense: int) -> None:
    model = DLRM(features, dense, dim=4, bottom=(6,), top=(7, 5)).double()
    generator = np.random.default_rng(0)
    vectors, columns = generator.normal(size=(5, features, 4)), generator.normal(size=(5, dense))
    expected = []
    for sample in range(5):
        all_vectors = [[float(v) for v in row] for row in vectors[sample]]
        start: list[float] = []
        if model.bottom is not None:
            start = slow_mlp([float(v) for v in columns[sample]], model.bottom)
            all_vectors.insert(0, start)
        products = [
            sum(a * b for a, b in zip(all_vectors[i], all_vectors[j], strict=True))
            for i in range(len(all_vectors))
            for j in range(i)
        ]
        expected += slow_linear(slow_mlp(start + products, model.top), model.logit)
    got = model(torch.from_numpy(vectors), torch.from_numpy(columns)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    for model in (DCNv2(2, 1, dim=3, hidden=(4,)), DLRM(2, 1, dim=3, bottom=(4,), top=(4,))):
        torch.manual_seed(0)
        vectors = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
        dense = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(model.double(), (vectors, dense))


def test_dlrm_needs_a_pair() -> None:
    with pytest.raises(ConfigError, match="pairs"):
        DLRM(1, 0)


def test_the_config_decides() -> None:
    model = build_model(DCNv2Config(dim=30, cross_layers=1, hidden=(192,)), num_features=6, num_dense=0)
    assert isinstance(model, DCNv2)
    assert sum(p.numel() for p in model.parameters()) == (180 * 180 + 180) + (180 * 192 + 192) + 193
    model = build_model(DLRMConfig(dim=8, bottom=(4,), top=(3,)), num_features=2, num_dense=5)
    assert isinstance(model, DLRM)
    sizes = [p.numel() for p in model.parameters()]
    assert sizes == [5 * 4, 4, 4 * 8, 8, (3 + 8) * 3, 3, 3, 1]


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    model = DCNv2(2, 0, dim=4, dropout=0.5)
    vectors, dense = torch.randn(8, 2, 4), torch.zeros(8, 0)
    assert not torch.equal(model(vectors, dense), model(vectors, dense))
    model.eval()
    assert torch.equal(model(vectors, dense), model(vectors, dense))


@pytest.mark.parametrize("make", [DCNv2, DLRM])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@given(features=st.integers(2, 5), dense=st.integers(0, 3), dim=st.integers(1, 7), hidden=st.booleans())
def test_padding_changes_nothing(
    make: type[nn.Module], features: int, dense: int, dim: int, hidden: bool, dtype: torch.dtype
) -> None:
    """The same weights, logits and gradients, in training and out of it; and the width in training is a multiple."""
    layers = {"hidden" if make is DCNv2 else "top": (5,) * hidden}
    plain, padded = (
        (torch.manual_seed(0), make(features, dense, dim=dim, **layers, padded=p).to(dtype))[1] for p in (False, True)
    )
    state = plain.state_dict()
    assert list(state) == list(padded.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in padded.state_dict().items())
    widths = list[int]()
    deep = padded.get_submodule("deep" if make is DCNv2 else "top")
    deep.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    draw = torch.Generator().manual_seed(1)
    vectors = torch.randn(6, features, dim, generator=draw, dtype=dtype, requires_grad=True)
    columns = torch.randn(6, dense, generator=draw, dtype=dtype)
    found = []
    for model in (plain, padded):
        logits = model(vectors, columns)
        found.append((logits, *torch.autograd.grad(logits.sin().sum(), [vectors, *model.parameters()])))
    exact = dtype == torch.float64
    torch.testing.assert_close(found[1], found[0], rtol=1e-10 if exact else 1e-5, atol=1e-12 if exact else 1e-6)
    assert [width % 16 for width in widths] == [0]
    torch.testing.assert_close(plain.eval()(vectors, columns), padded.eval()(vectors, columns), rtol=0, atol=0)


def test_training_is_padded_but_for_bf16() -> None:
    def padding_of(**training: str) -> int:
        config = parse_config({"data": {"path": "x"}, "model": {"dim": 3}, "training": training})
        return build_recommender(config, [Feature("a", 5), Feature("b", 5)], 1).interaction.padding  # type: ignore[return-value]

    assert padding_of() == padding_of(precision="fp32") == 9
    assert padding_of(precision="bf16") == 0
