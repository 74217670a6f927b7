"""
Run a command as the terminal's foreground job, for `make demo`.

Ctrl-C goes to everybody in the foreground process group, and a make that gets it fails however
cleanly its recipe ended. So the command gets a group and the terminal of its own, and make only
sees how it left. Without a terminal, or in the background, it takes the place of this process.
"""

import os
import signal
import subprocess
import sys

ASKED_TO_LEAVE = (0, -signal.SIGINT, -signal.SIGTERM)


def open_terminal() -> int | None:
    """Return a descriptor of the terminal whose foreground job we are, or None."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    return terminal if os.tcgetpgrp(terminal) == os.getpgrp() else None


def run(command: list[str], terminal: int) -> int:
    """Lend the terminal to *command* until it ends, and return its status."""
    child = subprocess.Popen(command, process_group=0)
    signal.signal(signal.SIGTERM, lambda signum, frame: os.kill(child.pid, signum))
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else taking the terminal back would stop us
    while True:
        os.tcsetpgrp(terminal, child.pid)
        os.killpg(child.pid, signal.SIGCONT)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        os.tcsetpgrp(terminal, os.getpgrp())
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        os.killpg(0, signal.SIGSTOP)  # Ctrl-Z: make stops too, and the shell has its prompt


def main(command: list[str]) -> int:
    terminal = open_terminal()
    if terminal is None:
        os.execvp(command[0], command)
    status = run(command, terminal)
    return 0 if status in ASKED_TO_LEAVE else abs(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
