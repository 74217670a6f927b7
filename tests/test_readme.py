"""What the README says works when it is pasted into an empty folder."""

import re
import signal
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import Ready, Server, accepts, get, prints, run_server
from snippets import ROOT, command

README = (ROOT / "README.md").read_text()


class Snippet(NamedTuple):
    """A program of the README, and the commands that follow it."""

    title: str
    program: str
    install: str
    serve: str


def snippets() -> dict[str, Snippet]:
    """Return the programs of the README by the server that they are for."""
    found = {}
    for section in README.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for program, lines in zip(programs, commands, strict=True):
            install, serve = lines.splitlines()
            found[serve.split()[0]] = Snippet(title, program, install, serve)
    return found


SNIPPETS = snippets()


def serve(name: str, folder: Path, status: int, ready: Ready = accepts) -> Server:
    """Do what the README says of server *name*: save, run, ask, send SIGTERM."""
    (folder / "app.py").write_text(SNIPPETS[name].program)
    whole_lines = {"PYTHONUNBUFFERED": ""}  # else each word is written apart, between another's
    argv = command(SNIPPETS[name].serve)
    with run_server(argv, cwd=folder, env=whole_lines, ready=ready) as server:
        answer = get(server.port)
        assert answer.ok, server.report()
        assert answer.body.startswith(b"Hello")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
    return server


def test_every_program_is_run() -> None:
    """The tests below run all programs that the README has."""
    assert sorted(SNIPPETS) == ["gunicorn", "uvicorn", "waitress-serve"]
    assert README.count("```python") == len(SNIPPETS)


def test_wsgi_program_starts_and_stops(tmp_path: Path) -> None:
    """The WSGI program says `start` and `stop`, once each."""
    pytest.importorskip("waitress")
    server = serve("waitress-serve", tmp_path, 0)
    assert re.findall(r"^(?:start|stop)$", server.output(), re.MULTILINE) == ["start", "stop"]


def test_starlette_program_opens_its_database(tmp_path: Path) -> None:
    """The Starlette program answers from the database that its resource has opened."""
    pytest.importorskip("uvicorn")
    serve("uvicorn", tmp_path, -signal.SIGTERM)
    assert (tmp_path / "app.db").exists()


def test_gunicorn_program_starts_in_each_worker(tmp_path: Path) -> None:
    """The gunicorn program says `start` and `stop` once in each of its two workers."""
    pytest.importorskip("gunicorn")
    # Both: a worker that is told to go while it boots need not start.
    server = serve("gunicorn", tmp_path, 0, prints("start in worker", 2))
    said = re.findall(r"^(start|stop) in worker (\d+)$", server.output(), re.MULTILINE)
    started = {pid for word, pid in said if word == "start"}
    assert len(started) == 2
    assert sorted(said) == sorted((word, pid) for word in ("start", "stop") for pid in started)
    assert not (tmp_path / "app.pid").exists()


@pytest.mark.parametrize("name", sorted(SNIPPETS))
def test_extras_exist(name: str) -> None:
    """The extras that are to be installed are those of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.findall(rf"{project['name']}\[(\w+)\]", SNIPPETS[name].install)
    assert extra in project["optional-dependencies"]


def test_targets_exist() -> None:
    """Each target of make is there; `test_guides` looks at the links."""
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)$", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
