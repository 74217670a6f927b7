"""Listen on an address that a person has written: `host:port`, `[::1]:8000`, `unix:/path`."""

import errno
import os
import socket
import stat

from engine_bridge.core.errors import EngineError

USAGE = "write host:port, [::1]:8000 or unix:/path"


class Bound:
    """
    A socket that listens, and its file, if it has one.

    Attributes:
        socket: The socket.
        address: Where it listens, as written; with the port that was found for port 0.
    """

    def __init__(self, bind: str) -> None:
        self._file: os.stat_result | None = None
        try:
            self.socket = self._listen(bind)
        except (OSError, UnicodeError) as exc:
            cause = exc if isinstance(exc, OSError) else None
            raise EngineError(f"cannot serve on {bind}: {_reason(exc)}") from cause
        name = self.socket.getsockname()
        self.address = f"unix:{name}" if isinstance(name, str) else _with_port(*name[:2])

    def _listen(self, bind: str) -> socket.socket:
        if not bind.startswith("unix:"):
            return _listen_tcp(*parse(bind))
        self._path = os.path.abspath(bind.removeprefix("unix:"))
        _remove_stale(self._path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(self._path)
            self._file = os.stat(self._path)
            sock.listen(socket.SOMAXCONN)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def remove(self) -> None:
        """Close the socket and remove its file, if that is still ours."""
        self.close()
        try:
            if self._file is not None and os.path.samestat(os.stat(self._path), self._file):
                os.unlink(self._path)
        except OSError:
            pass  # it is gone, or not ours to remove: the next start finds it stale


def parse(bind: str) -> tuple[str, int]:
    """Return host and port of *bind*."""
    host, _, port = bind.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port[:6]) > 65535:
        raise EngineError(f"not an address to serve on: {bind!r}; {USAGE}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise EngineError(f"not an address to serve on: {bind!r}; {USAGE}")
    return host.strip("[]"), int(port)


def check(bind: object) -> str:
    """Return *bind*; refuse what cannot be an address."""
    if not isinstance(bind, str) or bind == "unix:" or "\0" in bind:
        raise EngineError(f"not an address to serve on: {bind!r}; {USAGE}")
    if not bind.startswith("unix:"):
        parse(bind)
    return bind


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_tcp(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=socket.SOMAXCONN)


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone; refuse that of one that lives."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
    if result != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)


def _reason(exc: OSError | UnicodeError) -> str:
    """Say what is wrong, and what to do."""
    if isinstance(exc, UnicodeError):
        return "no such host (that cannot be a name of one)"
    match exc.errno:
        case errno.EADDRINUSE:
            return "another process listens there; stop that, or choose another address"
        case errno.EACCES | errno.EPERM:
            return "permission denied; ports below 1024 and others' directories need rights"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case errno.EEXIST:
            return "that file is no socket; remove it, or choose another path"
        case errno.ENOENT | errno.ENOTDIR:
            return "there is no such directory"
    if isinstance(exc, socket.gaierror):
        return f"no such host ({exc.strerror})"
    return str(exc.strerror or exc)  # «AF_UNIX path too long» has no number
