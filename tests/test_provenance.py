"""What a run's identity covers."""

from __future__ import annotations

import ast
from pathlib import Path

import recsys_embed
from recsys_embed.provenance import TRAINING_CODE

ROOT = Path(recsys_embed.__file__).parent
ELSEWHERE = {"config", "errors", "files", "provenance", "seals", "doctor", "chatter", "report.results"}
"""Imported by the training code, and without a say in its numbers, or part of the identity in another way."""


def sources() -> list[Path]:
    found = []
    for part in TRAINING_CODE:
        path = ROOT / part
        assert path.exists(), part
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def test_whatever_the_training_code_imports_of_ours_is_part_of_a_runs_identity() -> None:
    covered = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in sources()}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recsys_embed."):
                module = str(node.module).removeprefix("recsys_embed.")
                known = module in covered or f"{module}.__init__" in covered or module in ELSEWHERE
                assert known, f"{path.relative_to(ROOT)} imports {module}"
