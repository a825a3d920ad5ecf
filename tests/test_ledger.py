from __future__ import annotations

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.ledger import COLUMNS, with_vocabularies


def test_a_vocabulary_is_listed_once_with_all_its_readers() -> None:
    features = [Feature("user", 30), Feature("friend", vocabulary="user"), Feature("city", 5)]
    layer = EmbeddingLayer(features, dim=4)
    ledger = with_vocabularies(layer.ledger(), layer.features, {"user": 700, "city": 90})
    assert list(ledger.columns) == [*COLUMNS, "host_bytes"]
    assert ledger.tail(2).to_dict("split")["data"] == [
        ["vocabulary", "user+friend", "user", 30, 0, 0, 0, 0, 700],
        ["vocabulary", "city", "city", 5, 0, 0, 0, 0, 90],
    ]
    assert ledger["serve_bytes"].sum() == layer.plan.serve_bytes
    assert ledger["host_bytes"].sum() == 790


def test_a_table_that_no_feature_reads_is_listed_with_all() -> None:
    """One feature of one chunk reads one of three shared tables; the others are shipped too."""
    emb = EmbeddingLayer(
        [Feature("a", 90)], 4, strategy={"name": "unified", "chunks": 1, "tables": 3}, budget=160, exact=()
    )
    ledger = emb.ledger()
    assert list(ledger["feature"]) == ["a"] * 3
    assert ledger["serve_bytes"].sum() == emb.plan.serve_bytes == 160
