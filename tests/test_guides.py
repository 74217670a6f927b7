"""What the guides say works when it is pasted into an empty folder."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import accepts, get, run_server, start_script
from snippets import KNOWN, ROOT, Block, blocks, command, dead_links

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
PROGRAMS = [block for path in GUIDES for block in blocks(path, "python")]
UNITS = [path for path in GUIDES if any(blocks(path, "ini"))]

# Runs the program as if by itself, and tells when its engine has started.
RUNNER = """
import runpy, sys
from journal import record
from engine_bridge import engine
from engine_bridge.core.records import StateChanged

def tell(found):
    if isinstance(found, StateChanged) and found.new == "STARTED":
        record("started")

if ".block(" in open("app.py").read():  # else it may be nobody by then, who cannot write that
    engine.observe(tell, everything=False)
sys.path[0] = ""
runpy.run_path("app.py", run_name="__main__")
"""
ENDS = {0, 128 + signal.SIGTERM}  # the second where it comes just before `block`


@pytest.mark.parametrize("block", PROGRAMS, ids=[block.name for block in PROGRAMS])
def test_program_of_a_guide_runs(block: Block, tmp_path: Path) -> None:
    """It ends by itself without an error, or on SIGTERM if it waits for that."""
    assert set(block.notes) <= KNOWN, "no such comment"
    if "not run" in block.notes:
        assert len(block.notes["not run"].split()) > 1, "give the reason"
        return
    for need in filter(None, block.notes.get("needs", "").split(", ")):
        if need == "root" and os.geteuid() != 0:
            pytest.skip("needs root")
        if need != "root" and importlib.util.find_spec(need) is None:
            pytest.skip(f"needs {need}")
    (tmp_path / "app.py").write_text(block.text)
    if "run" in block.notes:
        serve(block.notes["run"], tmp_path)
    else:
        run(block.text, tmp_path)


def serve(line: str, folder: Path) -> None:
    """Run a server on the program, and ask it once."""
    with run_server(command(line), cwd=folder, ready=accepts) as server:
        assert get(server.port).status in range(200, 500), server.report()  # it may serve no `/`
        server.signal(signal.SIGTERM)
        assert server.wait_exit() in {*ENDS, -signal.SIGTERM}, server.report()
        assert "Traceback" not in server.output()


def run(text: str, folder: Path) -> None:
    """Run the program with this interpreter."""
    with start_script(RUNNER, cwd=folder) as process:
        if ".block(" in text:
            pid = process.wait_published("started")[-1].pid  # a daemon's is not the leader's
            os.kill(pid, signal.SIGTERM)
        assert process.wait_exit() in ENDS, process.report()
        assert "Traceback" not in process.output(), process.report()


@pytest.mark.parametrize("path", GUIDES, ids=[path.stem for path in GUIDES])
def test_guide_begins_with_a_program(path: Path) -> None:
    """A guide of a plugin has a program before its second heading."""
    if path.stem == "index":
        return
    beginning = path.read_text().split("\n## ")[0]
    assert "```python\n" in beginning
    index = (path.parent / "index.md").read_text()
    assert f"({path.name})" in index, "docs/guides/index.md does not name it"


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    """Files and headings that are linked to exist."""
    assert dead_links(path) == []


@pytest.mark.parametrize("path", UNITS, ids=[path.stem for path in UNITS])
def test_units_of_a_guide_are_valid(path: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about the unit files, but for their programs."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for block in blocks(path, "ini"):
        [name] = re.findall(r"\A# /etc/systemd/system/([\w@-]+\.\w+)\n", block.text)
        text = re.sub(r"(?<==)/srv/\S*/bin/[\w-]+", sys.executable, block.text)
        assert not (tmp_path / name).exists(), f"two units are called {name}"
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if not _is_too_new(line)] == []


def _is_too_new(line: str) -> bool:
    """Whether *line* only says that this systemd is older than 253."""
    return bool(re.search("service type, ignoring: notify-reload|Unknown key 'ReloadSignal'", line))
