"""
Programs and links of Markdown files.

A ```python block of a guide is a whole program: saved as `app.py` in an empty folder and run, it
ends by itself with status 0, or waits in `engine.block()` and ends so when it gets SIGTERM. A
comment in front of a block, `<!-- … -->`, may say otherwise:

| comment | what is done |
|---|---|
| `run: uvicorn app:app --port 8000` | serve the program, ask for `/`, send SIGTERM |
| `needs: root`, `needs: PACKAGE, PACKAGE` | skip where that is missing |
| `not run: because …` | nothing, for that reason |
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"((?:^<!-- .*? -->\n+)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KNOWN = {"run", "needs", "not run"}


class Block(NamedTuple):
    """A block of code."""

    path: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def name(self) -> str:
        """Where to find it."""
        return f"{self.path.name}:{self.line}"


def blocks(path: Path, language: str) -> Iterator[Block]:
    """Yield the blocks in *language*, with the comments in front of them."""
    text = path.read_text()
    for found in BLOCK.finditer(text):
        notes = dict(note.split(": ", 1) for note in re.findall("<!-- (.*?: .*?) -->", found[1]))
        if found[2] == language:
            line = text.count("\n", 0, found.start(2)) + 1
            yield Block(path, line, language, found[3], notes)


def command(serve: str) -> list[str]:
    """Return a command line of a text for this interpreter and a port of our own."""
    program, *words = shlex.split(serve.replace("8000", "{port}"))
    path = Path(sys.executable).with_name(program)
    assert path.exists(), f"{program} is not installed"
    extra = ["--no-control-socket"] if program == "gunicorn" else []
    return [str(path), *extra, *words]


def serving(path: Path) -> list[str]:
    """Return the command lines of a README that serve its application on port 8000."""
    lines = re.findall(r"^    (\S.*)$", path.read_text(), re.MULTILINE)
    return [line for line in lines if "8000" in line and "://" not in line]


def dead_links(path: Path) -> list[str]:
    """Return the relative links of a Markdown file that lead nowhere, in a file or to a heading."""
    text = re.sub(r"```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (heading and heading not in anchors(target)):
            dead.append(link)
    return dead


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}
