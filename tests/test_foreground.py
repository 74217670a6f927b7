"""`make demo` on a terminal: Ctrl-C ends it, and make does not call that an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOREGROUND = Path(__file__).parents[1] / ".ci" / "foreground.py"
LIMIT = 10  # seconds
CTRL_C = b"\x03"
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs the tests

# Runs its arguments on a terminal of their own, to which its standard input is typed.
ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"

SERVER = """
import sys, time
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.05)  # a signal that comes just as it falls asleep is heard after it
except KeyboardInterrupt:
    print("left", flush=True)
    sys.exit({status})
"""


@pytest.mark.parametrize(("status", "outcome"), [(0, 0), (3, 2)])
def test_ctrl_c_reaches_the_command_and_not_make(status: int, outcome: int, tmp_path: Path) -> None:
    """Make ends as the command does: with 0, or with 2, which is how it tells of an error."""
    (tmp_path / "server.py").write_text(SERVER.format(status=status))
    recipe = f"@exec {sys.executable} {FOREGROUND} {sys.executable} server.py"
    (tmp_path / "Makefile").write_text(f"demo:\n\t{recipe}\n")
    with subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, "make", "demo"],
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if name not in OF_MAKE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as terminal:
        assert terminal.stdin is not None
        assert terminal.stdout is not None
        try:
            assert terminal.stdout.readline().strip() == b"ready"
            terminal.stdin.write(CTRL_C)
            terminal.stdin.flush()
            output = terminal.stdout.read()  # until all have left
            assert b"left" in output
            assert (b"Error" in output) is bool(status)
            assert terminal.wait(LIMIT) == outcome
        finally:
            terminal.kill()  # else whoever failed above would be waited for without a limit


def test_without_a_terminal_the_command_takes_its_place() -> None:
    """In a script or in CI it is as if the command had been run itself."""
    command = [sys.executable, str(FOREGROUND), sys.executable, "-c", "import sys; sys.exit(7)"]
    assert subprocess.run(command, start_new_session=True, check=False).returncode == 7
