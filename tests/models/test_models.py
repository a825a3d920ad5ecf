"""The models against slow float64 loops written from their papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from recsys_embed.config import DCNv2Config, DLRMConfig
from recsys_embed.errors import ConfigError
from recsys_embed.models import DLRM, DCNv2, build_model
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
