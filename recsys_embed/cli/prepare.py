"""``recsys-embed prepare``."""

from __future__ import annotations

from pathlib import Path

from recsys_embed.cli.configs import data_name, read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import ConfigArgument, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_table


def prepare(
    config: ConfigArgument, out: Out = None, overrides: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Encode raw rows into a data set."""
    from recsys_embed.data import prepare as encode

    with exit_codes(quiet=quiet):
        loaded = read_config(config, overrides)
        dataset = encode(loaded.data, out or Path(f"data-{data_name(loaded)}"))
        rows = {split: dataset.rows(split) for split in ("train", "val", "test")}
        features = [{"feature": one.name, "cardinality": one.cardinality} for one in dataset.features]
        if as_json:
            told = {"path": str(dataset.path), "fingerprint": dataset.fingerprint, "rows": rows, "features": features}
            print_json(told)
        else:
            print_table(features)
            print(", ".join(f"{count:,} {split}" for split, count in rows.items()), "rows")
            print(dataset.path)
