"""What libraries say that no user of this package can act upon: it is dropped, those messages and no others."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

_BY_WARNING: tuple[tuple[str, type[Warning], str], ...] = (
    # TorchRec's row-wise exchange calls torch by names that torch has renamed, at every step.
    (r"`torch\.distributed\.reduce_scatter_tensor` is deprecated", FutureWarning, r"torch\.distributed\.c10d_logger$"),
    (r"`torch\.distributed\.all_gather_into_tensor` is deprecated", FutureWarning, r"torch\.distributed\.c10d_logger$"),
    # FBGEMM's CUDA kernels tell once that they were not made for this GPU alone.
    (r"TBE B200 optimization: ", UserWarning, ""),
)
"""The beginnings of messages, their categories and the modules they come from."""

_BY_LOG = (
    ("torch.fx._symbolic_trace", "is_fx_tracing will return true for both fx.symbolic_trace and"),
    # FBGEMM 1.6 has no entry for itself in its table of what fits torch; `doctor` knows.
    ("root", "_fbgemm_torch_compat_table has no entry for"),
)
"""Loggers, and the beginnings of messages."""

_COLOUR = r"\x1b\[\d+m"


def hush() -> None:
    """Drop those messages from now on.

    They come from within every step, where :func:`quiet` would make Python forget which warnings it has shown once.
    """
    for message, category, module in _BY_WARNING:
        warnings.filterwarnings("ignore", message, category, module=module)
    for name, _ in _BY_LOG:
        logging.getLogger(name).addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record is none of those messages."""
    said = re.sub(_COLOUR, "", record.getMessage()).lstrip()
    return not any(record.name == name and said.startswith(beginning) for name, beginning in _BY_LOG)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For imports and plans: TorchRec and FBGEMM warn of their own deprecations, of how they are built, and of a
    topology that says what it is.

    The root logger has a handler meanwhile: without one, the first thing said to it would make it print all that
    follows.
    """
    torchrec, root, handler = logging.getLogger("torchrec"), logging.getLogger(), logging.NullHandler()
    level = torchrec.level
    root.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchrec.setLevel(logging.ERROR)
        try:
            yield
        finally:
            torchrec.setLevel(level)
            root.removeHandler(handler)
