"""A local store is opened in the background: nothing waits for it but who needs its answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from recsys_embed.tracking import outbox
from recsys_embed.tracking.outbox import Direct


class SlowStore:
    """Opens when it is let, and takes down what it is sent."""

    def __init__(self, uri: str) -> None:
        self.may_open, self.sent = threading.Event(), list[Any]()

    def connect(self) -> None:
        assert self.may_open.wait(60)

    def send(self, operation: Any, ids: Any) -> str | None:
        if operation["do"] == "fail":
            raise OSError("the disk is full")
        self.sent.append((operation["do"], threading.current_thread() is threading.main_thread()))
        return "id" if operation["do"] == "create" else None


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Direct:
    monkeypatch.setattr(outbox, "Store", SlowStore)
    return Direct("sqlite:///x.db", None)


def test_what_is_put_while_it_opens_is_written_in_order(direct: Direct) -> None:
    store: Any = direct._store
    direct.put([{"do": "create", "run": 0}, {"do": "log"}])
    direct.put([{"do": "text"}])
    assert store.sent == []
    store.may_open.set()
    assert direct.id(0) == "id"
    assert store.sent == [("create", False), ("log", False), ("text", False)]
    direct.put([{"do": "end"}])
    assert store.sent[3:] == [("end", True)]
    assert direct.close() == 0


def test_an_error_in_the_background_is_raised_by_the_next_call(direct: Direct) -> None:
    store: Any = direct._store
    direct.put([{"do": "create", "run": 0}, {"do": "fail"}, {"do": "log"}])
    store.may_open.set()
    for call in (lambda: direct.id(0), lambda: direct.put([{"do": "log"}]), direct.close):
        with pytest.raises(OSError, match="the disk is full"):
            call()
    assert [what for what, _ in store.sent] == ["create"]
