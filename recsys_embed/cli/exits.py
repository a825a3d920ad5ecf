"""How a command ends: one message and a code, with our own log lines on standard error until then."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from recsys_embed.errors import ConfigError, RecsysEmbedError


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, so that whatever an interrupt would save is saved."""

    exit_code = 143


@contextlib.contextmanager
def exit_codes(*, quiet: bool = False, several: bool = False) -> Iterator[None]:
    """End the process as the interface promises: one message and a code for our own errors, 130 or 143 if interrupted.

    Other exceptions are defects and keep their traceback. A command that several processes would do several times over
    is refused under torchrun, unless it is made for them.
    """
    with _logs(quiet):
        try:
            if not several and int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ConfigError(
                    "this command runs in one process: start it without torchrun; `train CONFIG` is for several"
                )
            yield
        except RecsysEmbedError as error:
            print(f"recsys-embed: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt as error:
            text = str(error) or "interrupted; the same command goes on from here"
            print(f"recsys-embed: {text}", file=sys.stderr)
            raise SystemExit(getattr(error, "exit_code", 130)) from None


@contextlib.contextmanager
def _logs(quiet: bool) -> Iterator[None]:
    """Our own log lines on standard error, for the time of a command."""
    logger = logging.getLogger("recsys_embed")
    handler = logging.StreamHandler(sys.stderr)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
