"""Serving speed, with a clock that only the model moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from recsys_embed.config import DataConfig
from recsys_embed.data import Batch, EncodedDataset, prepare
from recsys_embed.report import serving
from recsys_embed.report.serving import BATCHES, REQUESTS, serving_speed


class Timed(nn.Module):
    """Takes 300 µs a call and 2 µs a row, and 20 times as long on its first calls with a number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.calls: dict[int, list[bytes]] = {}

    def forward(self, batch: Batch) -> Tensor:
        assert torch.get_num_threads() == 1
        assert torch.is_inference_mode_enabled()
        assert not self.training
        rows = len(batch.label)
        seen = self.calls.setdefault(rows, [])
        seen.append(batch.ids.values.numpy().tobytes())
        self.now += (300e-6 + 2e-6 * rows) * (20 if len(seen) <= 3 else 1)
        return torch.zeros(rows)

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)


@pytest.fixture(scope="module")
def dataset(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    data = {"path": str(clicks), "label": "clicked", "categorical": ["user", "item"], "split": {"column": "part"}}
    return prepare(DataConfig.model_validate(data), tmp_path_factory.mktemp("data") / "data")


@pytest.mark.parametrize(("asked", "batch"), [(256, 256), (4096, 1000)])
def test_it_is_the_median_answer_of_a_warm_model_on_one_thread(
    dataset: EncodedDataset, monkeypatch: pytest.MonkeyPatch, asked: int, batch: int
) -> None:
    model = Timed()
    monkeypatch.setattr(serving, "time", SimpleNamespace(perf_counter=lambda: model.now))
    monkeypatch.setattr(serving, "processor", lambda: "Example CPU")
    torch.set_num_threads(2)
    try:
        row = serving_speed(model, dataset, asked)  # type: ignore[arg-type]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert row == {
        "latency_single_row_microseconds": pytest.approx(302),
        "predict_rows_per_second": pytest.approx(batch / (300e-6 + 2e-6 * batch)),
        "serving": {"processor": "Example CPU", "threads": 1, "batch": batch, "requests": REQUESTS},
    }
    assert list(model.calls) == [1, batch]
    assert len(model.calls[1]) >= REQUESTS
    assert len(model.calls[batch]) >= BATCHES
    assert len(set(model.calls[1])) > 0.9 * REQUESTS  # another row each time
