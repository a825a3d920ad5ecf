"""What a process that prepares rows has to load before it begins."""

from __future__ import annotations

import subprocess
import sys


def test_rows_are_prepared_without_torch() -> None:
    code = "import sys, recsys_embed.data.prepare; print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
