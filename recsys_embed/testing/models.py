"""What every click-through-rate model must do. A new model inherits the tests::

class TestMine(ModelContract):
    def build(self, num_features: int, num_dense: int, dim: int) -> nn.Module:
        return Mine(num_features, num_dense, dim=dim)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ModelContract:
    """Tests of a model handed ``vectors [B, F, D]`` and ``dense [B, n]`` that returns ``logits [B]``."""

    shapes: tuple[tuple[int, int, int], ...] = ((2, 0, 4), (3, 2, 8), (7, 1, 5))

    def build(self, num_features: int, num_dense: int, dim: int) -> nn.Module:
        """The model under test, in whatever setting."""
        raise NotImplementedError

    def _input(self, samples: int, num_features: int, num_dense: int, dim: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(samples)
        vectors = torch.randn(samples, num_features, dim, generator=generator, dtype=torch.float64)
        return vectors, torch.randn(samples, num_dense, generator=generator, dtype=torch.float64)

    def test_one_logit_per_sample_whoever_is_beside_it(self) -> None:
        """Any batch size, 0 included; a sample's logit does not depend on the others of its batch."""
        for shape in self.shapes:
            model = self.build(*shape).double().eval()
            vectors, dense = self._input(9, *shape)
            together = model(vectors, dense)
            assert together.shape == (9,)
            assert model(vectors[:0], dense[:0]).shape == (0,)
            alone = torch.cat([model(vectors[i : i + 1], dense[i : i + 1]) for i in range(9)])
            torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)

    def test_everything_handed_over_is_used(self) -> None:
        """A gradient reaches every feature's vector, every dense column and every parameter."""
        for shape in self.shapes:
            torch.manual_seed(0)
            model = self.build(*shape).double()
            vectors, dense = (tensor.requires_grad_() for tensor in self._input(32, *shape))
            model(vectors, dense).sum().backward()
            assert vectors.grad is not None
            assert bool(vectors.grad.abs().sum(dim=(0, 2)).gt(0).all())
            if shape[1]:
                assert dense.grad is not None
                assert bool(dense.grad.abs().sum(dim=0).gt(0).all())
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert bool(parameter.grad.abs().sum() > 0), name

    def test_the_seed_decides_the_weights(self) -> None:
        """The same seed gives the same weights; another seed, others. A state_dict carries them."""
        for shape in self.shapes:
            states = []
            for seed in (0, 0, 1):
                torch.manual_seed(seed)
                states.append(self.build(*shape).state_dict())
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
            assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
            other = self.build(*shape)
            other.load_state_dict(states[0])
            assert all(torch.equal(value, states[0][name]) for name, value in other.state_dict().items())

    def test_learns_an_interaction(self) -> None:
        """Labels that only the product of two features explains are learnt: a sum of effects stays at log 2."""
        torch.manual_seed(0)
        model = self.build(2, 0, 4)
        sign = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(8, 1)
        vectors = sign.unsqueeze(2) * torch.tensor([1.0, 0.5, -1.0, 2.0])
        label = (sign.prod(dim=1) + 1) / 2
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(model(vectors, torch.zeros(32, 0)), label)
            torch.autograd.backward(loss)
            optimizer.step()
        assert loss.item() < 0.1
