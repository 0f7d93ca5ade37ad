"""Running code that a model wrote.

What the program cannot do, where Linux allows namespaces (`isolated`): reach a network (it has one of its own, without
any device) or the sockets of services here, see or signal other processes (its own process namespace), read any file
but the interpreter's and the system's libraries and programs (it has a file tree of its own, without installed
packages), write anywhere but in an empty folder in memory that goes with it, keep capabilities, or a user's rights
where we are root. Its environment is empty. Processor time, wall time, memory of a process, number of processes and
size of files are limited; it and all that it started are killed at the end.

What it does not cover: holes in the kernel, what leaks through timing, and the sum of memory over its processes (each
has the limit to itself). Without namespaces (another system, a locked-down container) the limits, the empty environment
and the deadline remain; nothing keeps a program from files and network, or from leaving a process behind that has made
itself independent: run such a model in a virtual machine.

The program never judges itself: it runs here and answers calls with plain values; what they are compared with stays
outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from crow.errors import ResourceError
from crow.evaluation import values

WORKER = Path(__file__).with_name("sandbox_worker.py")
LONGEST = 1 << 20
"""Bytes of one response."""
ENDING = 5.0
"""Seconds that the end of all processes of a namespace may take."""
USERS = range(0x70000000, 0x7FF00000)
"""Numbers that no user has: the processes of a user are counted together, and sandboxes must not share that limit."""


class ProgramError(Exception):
    """The program raised, died, or did not answer in time."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu: seconds of processor time of each process.
        wall: seconds from its start to its end.
        memory: bytes of address space of each process.
        processes: how many there may be.
        file: bytes of a file, and of all files together.
    """

    cpu: int = 10
    wall: float = 15.0
    memory: int = 1 << 30
    processes: int = 32
    file: int = 16 << 20


class Sandbox:
    """One program in a process of its own; a context manager.

    Attributes:
        isolated: whether it has namespaces of its own.
    """

    def __init__(self, limits: Limits | None = None, isolated: bool | None = None) -> None:
        """Prepare; nothing runs yet.

        Args:
            limits: the defaults by default.
            isolated: False does without namespaces; None asks the system.
        """
        self.limits = limits or Limits()
        self.isolated = can_isolate() if isolated is None else isolated

    def __enter__(self) -> Sandbox:
        self.folder = tempfile.mkdtemp(prefix="crow-sandbox-")
        Path(self.folder).chmod(0o777)
        self.deadline = time.monotonic() + self.limits.wall
        to_worker, self.requests = os.pipe()
        self.responses, from_worker = os.pipe()
        settings = {
            "requests": to_worker,
            "responses": from_worker,
            "folder": self.folder,
            "isolated": self.isolated,
            "privileged": os.geteuid() == 0,
            "user": secrets.choice(USERS),
            "limits": {k: v for k, v in dataclasses.asdict(self.limits).items() if k != "wall"},
        }
        command = [*(namespaces() if self.isolated else ()), python(), "-I", "-S", str(WORKER), json.dumps(settings)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_worker, from_worker),
            env={"PATH": "/usr/bin:/bin", "HOME": self.folder, "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
        os.close(to_worker)
        os.close(from_worker)
        for end in (self.requests, self.responses):
            os.set_blocking(end, False)
        self._rest = b""
        self._first = None
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        """Wait until the worker is ready, and get hold of it before it runs anything.

        Raises:
            ResourceError: if it does not get there.
        """
        try:
            if self._receive() != {"ready": True}:
                raise ProgramError("it began with something else")
            if self.isolated:
                # The program is the first process of its namespace; nothing that it does to itself can undo this hold.
                self._first = os.pidfd_open(child_of(self.process.pid))
        except (ProgramError, OSError) as error:
            told = f"a sandbox for the model's code did not start: {error}"
            raise ResourceError(f"{told}; free memory or processes, then try again") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._first is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)  # its death ends all others of its namespace
            os.close(self._first)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING)  # which waits for them
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.requests)
        os.close(self.responses)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, source: str) -> None:
        """Execute a program, so that what it defines can be called.

        Raises:
            ProgramError: if it raises, dies, or takes too long.
        """
        self._ask({"source": source})

    def call(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        """What the program's function of that name returns.

        Args:
            name: of the function.
            arguments: plain values.
            named: further ones, by name.

        Raises:
            ProgramError: if it raises, dies, takes too long, or returns something that is no plain value.
        """
        return self._ask({"name": name, "arguments": values.encode(list(arguments)), "named": values.encode(named)})

    def _ask(self, request: dict[str, Any]) -> Any:
        self._send(json.dumps(request).encode() + b"\n")
        response = self._receive()
        if not isinstance(response, dict) or len(response) != 1:
            raise ProgramError("the program wrote on the sandbox's own line")
        if "value" not in response:
            raise ProgramError(str(response.get("error"))[:500])
        try:
            return values.decode(response["value"])
        except ValueError:
            raise ProgramError("the program wrote on the sandbox's own line") from None

    def _send(self, data: bytes) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.requests, selectors.EVENT_WRITE)
            while data:
                left = self.deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ProgramError(f"no request read within {self.limits.wall:g} s")
                try:
                    data = data[os.write(self.requests, data) :]
                except BrokenPipeError:
                    raise ProgramError("the program ended its own process") from None

    def _receive(self) -> Any:
        with selectors.DefaultSelector() as selector:
            selector.register(self.responses, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                left = self.deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ProgramError(f"no answer within {self.limits.wall:g} s")
                part = os.read(self.responses, 1 << 16)
                self._rest += part
                if not part:
                    raise ProgramError("the program ended its own process")
                if len(self._rest) > LONGEST:
                    raise ProgramError(f"an answer of more than {LONGEST} bytes")
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise ProgramError("the program wrote on the sandbox's own line") from None


def child_of(parent: int) -> int:
    """The number of a process's child.

    Raises:
        ProgramError: if it has none.
    """
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            if path.read_text(errors="replace").rpartition(")")[2].split()[1] == str(parent):
                return int(path.parent.name)
    raise ProgramError("it ended at once")


def python() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def namespaces() -> list[str]:
    """The command that starts another with namespaces of its own, as util-linux has it."""
    own = ["--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child"]
    return ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), *own]


@functools.cache
def can_isolate() -> bool:
    """Whether this system lets us have namespaces: tried once."""
    if shutil.which("unshare") is None:
        return False
    try:
        with Sandbox(isolated=True) as sandbox:
            sandbox.run("def f(x):\n    import math\n    return math.floor(x)")
            return sandbox.call("f", 1.5) == 1
    except (ProgramError, ResourceError, OSError):
        return False
