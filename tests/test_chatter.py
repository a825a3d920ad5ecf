"""What is kept from the user, and that nothing else is."""

from __future__ import annotations

import logging
import warnings

from recsys_embed import chatter


def test_what_is_dropped_is_told_by_its_words():
    """A deprecation that is not known, another category, and other lines of the same logger are heard as ever."""
    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("torch.fx._symbolic_trace")
    logger.addHandler(listener)
    known = "`torch.distributed.reduce_scatter_tensor` is deprecated. Please use `torch.distributed.reduce_scatter_sin"
    there = {"filename": "c10d_logger.py", "lineno": 1, "module": "torch.distributed.c10d_logger"}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chatter.hush()
            warnings.warn_explicit(known, FutureWarning, **there)
            warnings.warn_explicit(known.replace("reduce_scatter", "broadcast"), FutureWarning, **there)
            warnings.warn_explicit(known, UserWarning, **there)
            warnings.warn_explicit(known, FutureWarning, **{**there, "module": "mine"})
        logger.warning("is_fx_tracing will return true for both fx.symbolic_trace and torch.export. Please use x")
        logger.warning("is_fx_tracing is something else")
    finally:
        logger.removeHandler(listener)
        logger.removeFilter(chatter.is_news)
    assert [str(one.message)[:35] for one in caught] == ["`torch.distributed.broadcast_tensor", *[known[:35]] * 2]
    assert heard == ["is_fx_tracing is something else"]
