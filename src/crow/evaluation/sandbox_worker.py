"""The inside of the sandbox: gives up what it must not have, then runs the program and answers calls of it.

Run as a file by `crow.evaluation.sandbox`, isolated from site packages and crow itself. Requests and responses are
lines of JSON on two inherited pipes; values are JSON with Python's own types spelled out (`crow.evaluation.values`,
read by path).
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

NOBODY = 65534
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 0x1
MS_PRIVATE, MS_REC, MS_BIND, MS_RDONLY, MS_NOSUID, MS_NODEV = 1 << 18, 1 << 14, 1 << 12, 1, 2, 4
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
LIBC = ctypes.CDLL(None, use_errno=True)
DEVICES = ("null", "zero", "full", "random", "urandom")
SHOWN = (
    *("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache"),
    *(f"/dev/{name}" for name in DEVICES),
)
"""What of the system a program has: what the interpreter and its extension modules need, and none of it private."""


class Attributes(ctypes.Structure):
    """`struct mount_attr` of Linux."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user", ctypes.c_uint64),
    )


def confine_files(folder: str, size: int) -> None:
    """Leave nothing of the file system but the interpreter, the system's libraries and an empty `folder`.

    A file tree of its own keeps a program from files that its user may read, and from the sockets of services, which
    no network namespace is about. All is read-only but `folder`, which holds at most `size` bytes and goes with the
    process.
    """
    os.umask(0o022)  # the program's user is another one, and has to get through
    mount(None, "/", None, MS_PRIVATE | MS_REC)
    read_only("/", AT_RECURSIVE)
    root = folder
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in (*SHOWN, sys.base_prefix):
        show(path, root)
    for prefix in {sys.base_prefix, "/usr", "/usr/local"}:
        for packages in glob.glob(f"{glob.escape(root + prefix)}/lib*/python3*/*-packages"):  # noqa: PTH207
            hide(packages)
    # What /proc says about processes is of the namespace, too.
    os.mkdir(f"{root}/proc")  # noqa: PTH102
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    os.makedirs(f"{root}{folder}", exist_ok=True)  # noqa: PTH103
    mount("tmpfs", f"{root}{folder}", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=777")
    read_only(root, 0)
    os.chroot(root)  # without its capability there is no way back


def show(path: str, root: str) -> None:
    """Have a path of the system, if it is there, in the tree at `root`, too."""
    place = root + path
    if not os.path.lexists(path) or os.path.lexists(place):
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
    if os.path.islink(path):  # noqa: PTH114
        os.symlink(os.readlink(path), place)  # noqa: PTH115, PTH211
        return
    if os.path.isdir(path):  # noqa: PTH112
        os.mkdir(place)  # noqa: PTH102
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(path, place, None, MS_BIND | MS_REC)


def hide(place: str) -> None:
    """Put an empty folder in the place of one whose files a program could look answers up in."""
    mount("tmpfs", place, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """What `mount` of the system does."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    checked(LIBC.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))


def read_only(path: str, flags: int) -> None:
    """Make what is mounted at a path read-only; with `AT_RECURSIVE` below it, too."""
    attributes = Attributes(READ_ONLY, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    checked(LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), size))


def checked(result: int) -> None:
    """Raise OSError unless a call of the system went well."""
    if result != 0:
        raise OSError(ctypes.get_errno(), "the sandbox could not be set up")


def give_up(privileged: bool, user: int) -> None:
    """No capabilities, no way back to them; where we are root, become `user`, whose processes are counted apart."""
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if privileged:
        os.setgroups([])
        try:
            become(user)
        except OSError:  # a container may have few users
            become(NOBODY)
        return
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    LIBC.capset(header, nothing)


def become(user: int) -> None:
    """Go on as this user, in the group of the same number."""
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def limit(cpu: int, memory: int, processes: int, file: int) -> None:
    """Hard limits of this process and its children; see `crow.evaluation.sandbox.Limits`."""
    for name, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


def load_values() -> Any:
    """The codec, from the file beside this one: the package is not to be imported here."""
    path = Path(__file__).with_name("values.py")
    spec = importlib.util.spec_from_file_location("values", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Confine, say so, then answer one request after another."""
    settings = json.loads(sys.argv[1])
    values = load_values()
    requests = os.fdopen(settings["requests"], encoding="utf-8")
    responses = os.fdopen(settings["responses"], "w", encoding="utf-8")
    if settings["isolated"]:
        confine_files(settings["folder"], settings["limits"]["file"])
    os.chdir(settings["folder"])
    if settings["isolated"]:
        give_up(settings["privileged"], settings["user"])
    limit(**settings["limits"])

    def answer(**response: Any) -> None:
        responses.write(json.dumps(response) + "\n")
        responses.flush()

    answer(ready=True)
    namespace: dict[str, Any] = {"__name__": "program"}
    for line in requests:
        request = json.loads(line)
        try:
            if "source" in request:
                exec(compile(request["source"], "program", "exec"), namespace)  # noqa: S102 what all this is for
                answer(value=None)
            else:
                arguments, named = values.decode(request["arguments"]), values.decode(request["named"])
                result = namespace[request["name"]](*arguments, **named)
                answer(value=values.encode(result))
        except BaseException as error:  # noqa: BLE001 a program may raise anything
            answer(error=f"{type(error).__name__}: {error}"[:500])


if __name__ == "__main__":
    main()
