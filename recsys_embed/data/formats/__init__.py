"""The formats that ``data.format`` chooses from, by name."""

from __future__ import annotations

from recsys_embed.data.formats.avazu import AVAZU
from recsys_embed.data.formats.base import Format
from recsys_embed.data.formats.criteo import CRITEO
from recsys_embed.data.formats.libsvm import LIBSVM
from recsys_embed.data.formats.movielens import MOVIELENS_1M, MOVIELENS_25M
from recsys_embed.data.formats.tables import tables

__all__ = ["FORMATS", "Format", "format_of"]

FORMATS: dict[str, Format] = {
    "auto": tables(),
    "criteo": CRITEO,
    "avazu": AVAZU,
    "movielens_1m": MOVIELENS_1M,
    "movielens_25m": MOVIELENS_25M,
    "libsvm": LIBSVM,
}


def format_of(name: str = "auto", separator: str | None = None) -> Format:
    """A format by its name; ``separator`` is that of ``auto``'s CSV files."""
    return FORMATS[name] if separator is None else tables(separator)
