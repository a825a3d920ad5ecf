"""A compiled model trains as one that is not, stops and goes on, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_embed.errors import ConfigError
from recsys_embed.training import trainer
from recsys_embed.training.interrupt import Interrupted
from tests.training.staged import build, fit, same_state, settings, without_times


@pytest.mark.slow
def test_it_trains_as_one_that_is_not(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With dropout, and a short last batch; stopped in the second epoch, it ends at the same bits."""
    data = toy(rows=110)
    config = settings(compile=True)
    with caplog.at_level(logging.INFO, "recsys_embed"):
        model, result = fit(config, data)
    assert [record.getMessage() for record in caplog.records] == [f"compiled in {result.compile_seconds:.1f} s"]
    eager, expected = fit(settings(), data)
    assert result.compile_seconds > 0 == expected.compile_seconds
    assert result.train_seconds < result.compile_seconds
    assert model.in_training is None
    assert list(model.state_dict()) == list(eager.state_dict())
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert result.val["auc"] == pytest.approx(expected.val["auc"], abs=1e-3)

    plain, steps = trainer.step, [0]

    def stopping(*args: Any) -> Any:
        steps[0] += 1
        if steps[0] == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="step 9 is saved"):
        patch.setattr(trainer, "step", stopping)
        fit(config, data, checkpoints=tmp_path)
    resumed, again = fit(config, data, checkpoints=tmp_path)
    assert same_state(model, resumed)
    assert without_times(again) == without_times(result)


class Branches(nn.Module):
    """Goes another way for other values, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        logits = vectors.sum((1, 2)) * self.scale
        return logits if logits.sum().item() > 0 else logits * 2


@pytest.mark.slow
def test_what_cannot_be_compiled_is_refused(toy: Any) -> None:
    config, data = settings(compile=True), toy(rows=110)
    model = build(config, data)
    model.interaction = Branches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"training\.compile = true, but torch cannot compile this model") as caught:
        trainer.train(model, data, config.training, progress=False)
    assert caught.value.path == "training.compile"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_without_a_compiler_it_says_so(toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="No working C\\+\\+ compiler"):
        fit(settings(compile=True), toy(rows=110))
