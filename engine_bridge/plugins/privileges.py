"""
DropPrivileges: be somebody else, for good, once all that needs root has been done.

It happens at start priority 77: the PID file is held, the port is bound. What the process has
created until then is handed over first, for its new user has to open it again: by the plugins that
hold it, which hear of it on the channel `hand_over`; log files of `logging` and Unix sockets, which
belong to no plugin, here.

All three user ids and all three group ids are set, and then the way back is tried. If it is open,
say by a capability that was left, the start fails.
"""

import os
import stat
import sys
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import NamedTuple

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import inherited_sockets
from engine_bridge.core.records import INFO, WARNING
from engine_bridge.plugins.base import (
    Plugin,
    check_owns_process,
    check_umask,
    hand_over,
    logging_handlers,
)

try:
    import grp
    import pwd
except ImportError:  # pragma: no cover  # Windows
    grp = pwd = None  # type: ignore[assignment]  # asked for at `subscribe`

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INSTEAD = "`engine-bridge run --user … --group …` or `gunicorn --user … --group …`"
USAGE = "DropPrivileges(engine, uid='www-data')"
HIGHEST_ID = 2**32 - 2  # the last one means «as it is» to setresuid(2)
PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
CAP_SETGID, CAP_SETUID = 6, 7  # capabilities(7)
PATIENCE = 1.0  # seconds for the kernel to be done with threads that were joined; no event tells
PAUSE = 0.005


class DropPrivileges(Plugin):
    """
    Become another user once the port is bound and the PID file is held, and never root again.

    A user brings along the primary group and all groups of which it is a member. Names are looked
    up at each start. A number without an entry in the user database needs a group as well: there is
    nothing to take it from, and root's, which Docker would take, is too good a guess.

    Who is that user already, as after a restart, stays so. HOME, USER and LOGNAME are those of the
    user, if it has an entry.

    Args:
        engine: The engine to listen to.
        umask: The permissions that files do not get from now on; None leaves the present ones.
        uid: A user, by name or number; None stays the present one.
        gid: A group, by name or number, in the place of the user's primary one.
        no_new_privs: Whether setuid programs and file capabilities shall mean nothing to this
            process and its children. Linux only.

    Raises:
        EngineError: An argument is not what it should be.

    Source:
        setpriv(1) of util-linux, which likewise asks for a group where none is known; prctl(2);
        systemd.exec(5), `User=`, for the variables.
    """

    channels = ("start",)

    def __init__(
        self,
        engine: Engine,
        umask: int | None = None,
        uid: int | str | None = None,
        gid: int | str | None = None,
        no_new_privs: bool = False,
    ) -> None:
        super().__init__(engine)
        self.umask = umask
        if umask is not None:
            check_umask(umask, "DropPrivileges(engine, umask=0o027)")
        self.uid = _check_id("uid", uid)
        self.gid = _check_id("gid", gid)
        self.no_new_privs = no_new_privs

    def subscribe(self) -> None:
        """
        Turn the plugin on.

        Raises:
            EngineError: A server owns this process, or the platform has nothing of the kind.
        """
        if pwd is None:
            raise EngineError(
                "DropPrivileges needs the users of POSIX, which this platform does not have; "
                "leave it out here and have a service manager choose the user"
            )
        if self.no_new_privs and not sys.platform.startswith("linux"):
            raise EngineError("DropPrivileges(no_new_privs=True) is for Linux only; leave it out")
        check_owns_process(self, INSTEAD)
        super().subscribe()
        if self.no_new_privs:
            self.listen("start", self.forgo_new, 11)

    def forgo_new(self) -> None:
        """
        Have setuid programs mean nothing, to this thread and all that it will start.

        Early, for each thread has its own say in this, and those that run already keep theirs.

        Raises:
            EngineError: The kernel refuses, or other threads run already.
        """
        check_owns_process(self, INSTEAD)
        self.engine.alone(_forgo_new)
        deadline = monotonic() + PATIENCE
        while (left := _threads_with_new()) and monotonic() < deadline:
            sleep(PAUSE)
        if left:
            raise EngineError(
                f"no_new_privs would not hold for {len(left)} threads that run already "
                f"({', '.join(left)}); start them on `start`, later than priority 11"
            )

    def start(self) -> None:
        """
        Hand over what this process holds, and become the other user.

        Raises:
            EngineError: There is no such user or group, this process may not become it, or could
                become root again.
        """
        check_owns_process(self, INSTEAD)
        if self.uid is None and self.gid is None:
            self._tell_that_nothing_is_dropped()
        else:
            self._become(_identify(self.uid, self.gid))
        if self.umask is not None:
            os.umask(self.umask)

    start.priority = 77  # type: ignore[attr-defined]  # once all that needs root has been done

    def _tell_that_nothing_is_dropped(self) -> None:
        text = "No privileges dropped: neither uid nor gid is given"
        if os.geteuid() == 0:
            self.engine.log(f"{text}, this process goes on as root: {USAGE}", WARNING)
        else:
            self.engine.log(f"{text}, this process is user {os.geteuid()} anyway", INFO)

    def _become(self, wanted: "Identity") -> None:
        if wanted.is_present():
            self.engine.log(f"No privileges to drop: this is {wanted} already", INFO)
        else:
            try:
                _set_groups(wanted)  # who may not do that may do nothing of it
                self._hand_over(wanted)
                _set_ids(wanted)
            except OSError as exc:
                raise EngineError(
                    f"cannot become {wanted}: {exc.strerror}; this process is "
                    f"user {os.geteuid()}: start it as root, or as that user at once"
                ) from exc
            wanted.set_environment()
            self.engine.log(f"Privileges dropped: this is {wanted} from now on", INFO)
        self._check(wanted)

    def _check(self, wanted: "Identity") -> None:
        """See that this is the user wanted, and stays it."""
        if wanted.uid == 0:
            self.engine.log("This process goes on as root: a group alone drops nothing", WARNING)
            return
        if by := _way_back(wanted):
            raise EngineError(
                f"{wanted} could become root again, by {by}: this process has been left rights "
                "that a change of user does not take away; see its capabilities and securebits "
                "in /proc/self/status, and capsh(1)"
            )
        if more := set(os.getgroups()) - {wanted.gid, *wanted.groups}:
            numbers = ", ".join(map(str, sorted(more)))
            self.engine.log(f"{wanted} has groups left that only root can drop: {numbers}", WARNING)

    def _hand_over(self, wanted: "Identity") -> None:
        self.engine.publish("hand_over", wanted.uid, wanted.gid)
        for handler in logging_handlers():
            if hasattr(handler, "baseFilename"):
                self._hand_over_log(handler, wanted)
        for path in _bound_sockets():
            try:
                _give_socket(path, wanted.uid, wanted.gid)
            except (OSError, EngineError) as exc:
                why = getattr(exc, "strerror", exc)
                self.engine.log(f"{path} is not handed over to user {wanted.uid}: {why}", WARNING)

    def _hand_over_log(self, handler: "Any", wanted: "Identity") -> None:
        handler.acquire()
        try:
            if handler.stream is not None:  # else it opens at its first line, as the new user
                descriptor = handler.stream.fileno()
                hand_over(self.engine, descriptor, handler.baseFilename, wanted.uid, wanted.gid)
        finally:
            handler.release()


# -- users ----------------------------------------------------------------------------------------


class Identity(NamedTuple):
    """Who a process can be."""

    uid: int
    gid: int
    groups: list[int]
    name: str  # empty for a user without an entry
    home: str

    def __str__(self) -> str:
        user = f"{self.name} ({self.uid})" if self.name else self.uid
        return f"user {user}, group {self.gid}"

    def is_present(self) -> bool:
        """Return whether this process is that already, and has no other id in reserve."""
        return os.getresuid() == (self.uid,) * 3 and os.getresgid() == (self.gid,) * 3

    def set_environment(self) -> None:
        """Have programs find the home of the user, not root's."""
        if self.name:
            os.environ.update(HOME=self.home, USER=self.name, LOGNAME=self.name)


def _identify(user: int | str | None, group: int | str | None) -> Identity:
    """
    Look up *user* and *group*.

    Raises:
        EngineError: There is no such user or group.
    """
    gid = None if group is None else _group_number(group)
    if user is None:
        assert gid is not None  # one of the two is given
        return Identity(os.geteuid(), gid, [gid], "", "")
    entry = _user_entry(user)
    if entry is not None:
        gid = entry.pw_gid if gid is None else gid
        groups = os.getgrouplist(entry.pw_name, gid)
        return Identity(entry.pw_uid, gid, groups, entry.pw_name, entry.pw_dir)
    if not _is_number(user):
        raise EngineError(f"no user {user!r} on this system (getent passwd); example: {USAGE}")
    if gid is None:
        raise EngineError(
            f"user {user} has no entry in the user database, so its group is unknown: "
            f"name one, DropPrivileges(engine, uid={user}, gid={user})"
        )
    return Identity(int(user), gid, [gid], "", "")


def _user_entry(user: int | str) -> "pwd.struct_passwd | None":
    """Return the entry of a user; a name may look like a number, and is looked for first."""
    if isinstance(user, str):
        try:
            return pwd.getpwnam(user)
        except KeyError:
            if not _is_number(user):
                return None
    try:
        return pwd.getpwuid(int(user))
    except KeyError:
        return None


def _group_number(group: int | str) -> int:
    if isinstance(group, str):
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            if not _is_number(group):
                raise EngineError(
                    f"no group {group!r} on this system (getent group); "
                    "example: DropPrivileges(engine, uid='www-data', gid='www-data')"
                ) from None
    return int(group)


def _is_number(name: int | str) -> bool:
    return isinstance(name, int) or (name.isascii() and name.isdigit())


def _check_id(parameter: str, value: int | str | None) -> int | str | None:
    """Return *value*, if it can be the name or number of a user or group."""
    if value is None:
        return None
    given: object = value
    if isinstance(given, str):
        is_right = given != "" and "\0" not in given
    else:
        is_right = isinstance(given, int) and not isinstance(given, bool)
    if is_right and _is_number(value):
        is_right = 0 <= int(value) <= HIGHEST_ID
    if not is_right:
        raise EngineError(
            f"DropPrivileges({parameter}=…) wants a name or a number, got {value!r}; "
            f"example: {USAGE}"
        )
    return value


def _set_groups(wanted: Identity) -> None:
    if set(os.getgroups()) != set(wanted.groups):
        os.setgroups(wanted.groups)


def _set_ids(wanted: Identity) -> None:
    """Set the ids, real, effective and saved; the group first, for the user may not."""
    if not hasattr(os, "setresuid"):  # pragma: no cover  # macOS, where these do it for root
        os.setgid(wanted.gid)
        os.setuid(wanted.uid)
        return
    os.setresgid(wanted.gid, wanted.gid, wanted.gid)
    os.setresuid(wanted.uid, wanted.uid, wanted.uid)


def _way_back(wanted: Identity) -> str:
    """Return by what this process can be root again; go the way and come back."""
    ways: list[tuple[str, Callable[[], None]]] = [("setuid(2)", lambda: os.setuid(0))]
    ways += [("seteuid(2)", lambda: os.seteuid(0))]
    if 0 not in wanted.groups and wanted.gid != 0:
        ways += [("setgid(2)", lambda: os.setgid(0)), ("setgroups(2)", lambda: os.setgroups([0]))]
    for name, go in ways:
        try:
            go()
        except OSError:
            continue
        _set_groups(wanted)
        _set_ids(wanted)
        return name
    if _permitted_capabilities() & (1 << CAP_SETGID | 1 << CAP_SETUID):
        return "a capability that it may still raise"
    return ""


def _permitted_capabilities() -> int:
    """Return the set of capabilities that this thread may have; 0 where there are none."""
    try:
        return int(_status(threading.get_native_id())["CapPrm"], 16)
    except OSError:
        return 0  # not Linux


def _status(thread: int | str) -> dict[str, str]:
    """Return what proc(5) tells of a thread of this process."""
    with open(f"/proc/self/task/{thread}/status", encoding="utf-8") as file:
        return dict(line.split(":\t", 1) for line in file.read().splitlines())


# -- what is handed over ---------------------------------------------------------------------------


def _bound_sockets() -> list[str]:
    """Return the paths of the Unix sockets that this process has bound. Linux only."""
    found = set()
    others = {0, 1, 2, *inherited_sockets()}  # a service manager's, with the owner it gave them
    try:
        descriptors = set(map(int, os.listdir("/proc/self/fd"))) - others
    except OSError:
        return []
    for descriptor in descriptors:
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.add(_path_of(descriptor))
        except OSError:
            pass  # closed meanwhile: the one that listed them
    return sorted(found - {""})


def _path_of(descriptor: int) -> str:
    """Return where a socket is bound; nothing for those that are of another kind, or accepted."""
    import socket

    with socket.socket(fileno=os.dup(descriptor)) as sock:
        if sock.family != socket.AF_UNIX:
            return ""
        is_accepted = sock.type == socket.SOCK_STREAM and not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
        name = sock.getsockname()
    return "" if is_accepted or not isinstance(name, str) else name


def _give_socket(path: str, uid: int, gid: int) -> None:
    """
    Give the socket at *path* to another user.

    By a descriptor of what is there: the path may be a link by the time it is used.

    Raises:
        EngineError: There is something else, or somebody else's.
        OSError: It cannot be given.
    """
    if not os.path.isabs(path):
        raise EngineError("its path is relative; bind it by an absolute one")
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        there = os.fstat(descriptor)
        if not stat.S_ISSOCK(there.st_mode) or there.st_nlink != 1:
            raise EngineError("there is something else by now")
        if there.st_uid != os.geteuid():
            raise EngineError(f"it belongs to user {there.st_uid}")
        os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
    finally:
        os.close(descriptor)


# -- no new privileges -----------------------------------------------------------------------------


def _forgo_new() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        reason = os.strerror(ctypes.get_errno())
        raise EngineError(f"the kernel refuses no_new_privs: {reason}; it is there since Linux 3.5")


def _threads_with_new() -> list[str]:
    """Return the names of the threads that may still get privileges."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        try:
            status = _status(thread)
        except OSError:
            continue  # it has ended
        if status.get("NoNewPrivs") == "0":
            found.append(status["Name"])
    return found
