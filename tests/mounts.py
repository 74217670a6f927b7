"""Run programs on a tiny file system of their own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import Process, start_process

PRIVATE: list[str | Path] = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


def on_mount(folder: Path, options: str, script: str) -> list[str | Path]:
    """
    Return the command of a Python script that runs in *folder*, on which a tmpfs is mounted.

    In a mount namespace of its own, so that nothing stays mounted whatever happens; a plain user
    may have one where user namespaces are allowed. Else the test is skipped.

    Args:
        folder: An empty one.
        options: Of mount(8), such as `size=4096` or `ro`.
        script: Its source.
    """
    mount = f'mount -t tmpfs -o {options} tmpfs "$1" && cd "$1"'
    try:
        probe = subprocess.run([*PRIVATE, mount, "", folder], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare(1)")
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.decode()}")
    program = folder.with_suffix(".py")
    program.write_text(textwrap.dedent(script))
    return [*PRIVATE, f'{mount} && exec "$2" "$3"', "", folder, sys.executable, program]


def run_on_mount(folder: Path, options: str, script: str) -> Process:
    """Run a script as by `on_mount`; it must end with 0."""
    with start_process(on_mount(folder, options, script), apart=True) as process:
        assert process.wait_exit() == 0, process.report()
    return process
