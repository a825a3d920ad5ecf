"""What has to be loaded before a command can begin."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("recsys_embed.cli", ["torch", "pandas", "pyarrow", "pydantic", "mlflow", "optuna"]),
        ("recsys_embed.data.prepare", ["torch", "mlflow", "optuna"]),
    ],
)
def test_it_begins_without(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
