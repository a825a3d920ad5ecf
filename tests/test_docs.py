"""What the documents and docstrings show works: Python blocks run, examples hold, commands and targets exist."""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import recsys_embed
from recsys_embed.errors import StackError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
PACKAGE = Path(recsys_embed.__file__).parent
MODULES = sorted(
    ".".join(["recsys_embed", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
OPTIONAL = {"fbgemm_gpu", "torchrec", "mlflow", "optuna"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block and the line its first line stands on."""

    language: str
    line: int
    text: str


def blocks(document: str, *languages: str) -> Iterator[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] in languages:
            yield Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2])


def commands(document: str, program: str) -> Iterator[list[str]]:
    """The words of every line of a shell block that calls a program; `$ ` before and `# …` after are dropped."""
    for block in blocks(document, "bash", "console", "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[;|]", line.removeprefix("$ ")):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:  # not a command: output that a console block shows
                    continue
                if words and words[0] == program:
                    yield words[1:]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace and one empty folder, as somebody who reads on would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__document__"}
    for block in blocks(document, "python"):
        # Blank lines in front make a traceback name the line of the document.
        code = compile("\n" * (block.line - 1) + block.text, str(ROOT / document), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_hold(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        imported = importlib.import_module(module)
    except StackError as absent:
        pytest.skip(str(absent))
    except ModuleNotFoundError as absent:
        if (absent.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {absent.name}, which is optional")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for example in doctest.DocTestFinder(exclude_empty=True).find(imported, module):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_options_exist(document: str) -> None:
    used: dict[str, set[str]] = {}
    for words in commands(document, "recsys-embed"):
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        used.setdefault(next((word for word in words if not word.startswith("-")), ""), set()).update(options)
    for command, options in used.items():
        arguments = [sys.executable, "-m", "recsys_embed", *([command] if command else []), "--help"]
        environment = {**os.environ, "COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        missing = {option for option in options if not re.search(rf"{option}\b", done.stdout)}
        assert not missing, f"{document}: recsys-embed {command} has no {sorted(missing)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {words[0] for words in commands(document, "make") if words and "=" not in words[0]}
    assert used <= targets
