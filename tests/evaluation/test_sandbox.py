"""Hostile programs: none gets out, none counts as a pass."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crow.errors import ResourceError
from crow.evaluation.humaneval import Problem, check_program
from crow.evaluation.sandbox import Limits, ProgramError, Sandbox, can_isolate

isolated = pytest.mark.skipif(not can_isolate(), reason="this system gives no namespaces")
QUICK = Limits(cpu=2, wall=4.0, memory=512 << 20, processes=16, file=1 << 20)
ADD = Problem(
    "add",
    'def add(a, b):\n    """The sum."""\n',
    "add",
    "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n",
)
RIGHT = "def add(a, b):\n    return a + b\n"

# Each is a program; what it says it returns would be right, if it got to that or cheated its way there.
HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "thread bomb": "import threading\nwhile True:\n    threading.Thread(target=threading.Event().wait).start()\n",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))\n",
    "memory in one go": "x = bytearray(1 << 40)\n",
    "endless loop": "while True:\n    pass\n",
    "sleeping": "import time\ntime.sleep(1000)\n",
    "endless output": "while True:\n    print('x' * 10000)\n",
    "endless answer": "def add(a, b):\n    return 'x' * (1 << 28)\n",
    "os._exit": "import os\nos._exit(0)\n",
    "sys.exit": "import sys\nsys.exit(0)\n",
    "exit in the call": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos._exit(0)\n",
    "kill everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)\nos._exit(0)\n",
    "segmentation fault": "import ctypes\nctypes.string_at(0)\n",
    "endless recursion": "def add(a, b):\n    return add(a, b)\nimport sys\nsys.setrecursionlimit(10**9)\nadd(1, 2)\n",
    "equal to everything": (
        "class Any:\n    def __eq__(self, other):\n        return True\n    __ne__ = lambda *_: False\n"
        "def add(a, b):\n    return Any()\n"
    ),
    "a number equal to everything": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
        "def add(a, b):\n    return Any(7)\n"
    ),
    "no assertions": (
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef add(a, b):\n    return 0\n"
    ),
    "another checker": "def check(candidate):\n    return None\ndef add(a, b):\n    return 0\n",
    "patching the worker": (
        "import sys\nmain = sys.modules['__main__']\nfor name in list(vars(main)):\n    setattr(main, name, None)\n"
        "def add(a, b):\n    return 0\n"
    ),
    "writing on the sandbox's line": (
        'import os\nfor fd in range(3, 40):\n    try:\n        os.write(fd, b\'{"value": {"int": "0x0"}}\\n\' * 3)\n'
        "    except OSError:\n        pass\ndef add(a, b):\n    return 1\n"
    ),
    "garbage on the sandbox's line": (
        "import os\nfor fd in range(3, 40):\n    try:\n        os.write(fd, b'[' * 100000 + b'\\n')\n"
        "    except OSError:\n        pass\ndef add(a, b):\n    return 5\n"
    ),
    "closing the sandbox's line": "import os\nos.closerange(0, 64)\ndef add(a, b):\n    return a + b\n",
    "a wrong answer": "def add(a, b):\n    return a - b\n",
    "no program": "def add(a, b) return a + b",
    "raising": "def add(a, b):\n    raise KeyboardInterrupt\n",
}


def test_a_right_program_passes() -> None:
    assert check_program(ADD, RIGHT, QUICK).passed


@isolated
@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_program_passes_or_outlives_its_time(name: str) -> None:
    started = time.monotonic()
    verdict = check_program(ADD, HOSTILE[name], QUICK)
    assert not verdict.passed
    assert verdict.reason
    assert time.monotonic() - started < QUICK.wall + 2
    assert check_program(ADD, RIGHT, QUICK).passed  # the machine still works


def test_the_lot_is_at_least_twenty() -> None:
    assert len(HOSTILE) >= 20


@isolated
@pytest.mark.parametrize(
    "path",
    [
        str(Path(__file__)),
        "/tmp/crow-sandbox-escape",
        "/etc/hosts",
        str(Path.home() / "escape"),
        "/dev/shm/escape",
        "/proc/sys/kernel/hostname",
    ],
)
def test_nothing_outside_of_the_folder_can_be_written(path: str) -> None:
    before = Path(path).read_bytes() if Path(path).is_file() else None
    with Sandbox(QUICK) as sandbox:
        sandbox.run("def f(path):\n    open(path, 'a').write('x')\n")
        with pytest.raises(ProgramError, match=r"PermissionError|OSError|FileNotFoundError"):
            sandbox.call("f", path)
    assert (Path(path).read_bytes() if Path(path).is_file() else None) == before


@isolated
def test_the_folder_can_be_written_up_to_a_limit_and_is_gone_afterwards() -> None:
    with Sandbox(QUICK) as sandbox:
        sandbox.run("def f(size):\n    open('x', 'wb').write(b'x' * size)\n    return len(open('x', 'rb').read())\n")
        assert sandbox.call("f", 1000) == 1000
        with pytest.raises(ProgramError):
            sandbox.call("f", 10 << 20)
        folder = Path(sandbox.folder)
    assert not folder.exists()


@isolated
def test_no_network_not_even_our_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox(QUICK) as sandbox:
        sandbox.run("import socket\ndef f(port):\n    socket.create_connection(('127.0.0.1', port), timeout=1)\n")
        with pytest.raises(ProgramError, match=r"OSError|Refused|unreachable"):
            sandbox.call("f", server.getsockname()[1])
        sandbox.run("def names():\n    return [name for _, name in socket.if_nameindex() if name != 'lo']\n")
        assert sandbox.call("names") == []


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    with Sandbox(QUICK) as sandbox:
        sandbox.run("import os\ndef f():\n    return dict(os.environ)\n")
        seen = sandbox.call("f")
    assert "SECRET_TOKEN" not in seen
    assert set(seen) <= {"PATH", "HOME", "LANG", "LC_CTYPE", "PWD", "SHLVL", "_"}


@isolated
def test_other_processes_cannot_be_seen_and_rights_are_gone() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with Sandbox(QUICK) as sandbox:
            sandbox.run(
                "import os\ndef f():\n    return [p for p in os.listdir('/proc') if p.isdigit()]\n"
                "def kill(pid):\n    os.kill(pid, 9)\ndef rights():\n"
                "    lines = open('/proc/self/status').read().splitlines()\n"
                "    return [line for line in lines if line.startswith(('CapEff', 'NoNewPrivs'))]\n"
            )
            assert len(sandbox.call("f")) <= 2
            with pytest.raises(ProgramError, match=r"ProcessLookupError|PermissionError"):
                sandbox.call("kill", other.pid)
            assert sandbox.call("rights") == ["CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@isolated
def test_nothing_that_it_started_survives() -> None:
    marker = f"crow-survivor-{os.getpid()}"
    with Sandbox(QUICK) as sandbox:
        sandbox.run(
            "import os, subprocess\ndef f(marker):\n"
            "    subprocess.Popen(['/bin/sh', '-c', 'sleep 60; :', marker], start_new_session=True)\n"
        )
        sandbox.call("f", marker)
        assert eventually(lambda: marker in running())
    assert eventually(lambda: marker not in running())


@isolated
def test_a_program_that_uses_up_its_processes_leaves_others_theirs() -> None:
    source = (
        "import os, time\ndef f(most):\n    for started in range(most):\n        try:\n            child = os.fork()\n"
        "        except OSError:\n            return started\n"
        "        if not child:\n            time.sleep(60)\n            os._exit(0)\n    return most\n"
    )
    with Sandbox(QUICK) as greedy, Sandbox(QUICK) as modest:
        greedy.run(source)
        modest.run(source)
        assert 8 <= greedy.call("f", 100) < QUICK.processes
        assert modest.call("f", 4) == 4


@isolated
def test_a_program_that_makes_itself_independent_does_not_survive() -> None:
    mark = f"crow-independent-{os.getpid()}"
    source = (
        "import ctypes, os, time\nos.setsid()\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        f"    os.execv('/bin/sh', ['/bin/sh', '-c', 'sleep 60; :', {mark!r}])\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(ProgramError, match="no answer"), Sandbox(Limits(wall=1.5)) as sandbox:
        sandbox.run(source)
    assert mark not in running()  # nor is it still on its way


@isolated
def test_a_strict_mask_of_the_user_does_not_keep_the_program_out(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Sandbox(QUICK) as sandbox:
            sandbox.run(RIGHT)
            assert sandbox.call("add", 2, 3) == 5
    finally:
        os.umask(before)


@isolated
def test_no_private_file_no_package_and_no_service_can_be_reached(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush")
    with socket.socket(socket.AF_UNIX) as server, Sandbox(QUICK) as sandbox:
        server.bind(str(tmp_path / "service"))
        server.listen()
        sandbox.run(
            "import os, socket, sys\ndef read(path):\n    return open(path).read()\n"
            "def talk(path):\n    socket.socket(socket.AF_UNIX).connect(path)\n"
            "def packages():\n    version = f'python{sys.version_info.major}.{sys.version_info.minor}'\n"
            "    folder = os.path.join(sys.base_prefix, 'lib', version, 'site-packages')\n"
            "    try:\n        open(os.path.join(folder, 'x'), 'w').close()\n    except OSError:\n        pass\n"
            "    return os.listdir(folder) if os.path.isdir(folder) else []\n"
        )
        for path in (str(tmp_path / "key"), "/etc/passwd"):
            with pytest.raises(ProgramError, match="FileNotFoundError"):
                sandbox.call("read", path)
        with pytest.raises(ProgramError, match="FileNotFoundError"):
            sandbox.call("talk", str(tmp_path / "service"))
        assert sandbox.call("packages") == []


def test_a_program_that_stops_reading_does_not_hold_us_up() -> None:
    source = (
        "import os, time\nfor end in range(3, 40):\n    try:\n"
        '        os.write(end, b\'{"value": {"int": "0x0"}}\\n\')\n'
        "    except OSError:\n        pass\ntime.sleep(60)\n"
    )
    started = time.monotonic()
    with Sandbox(Limits(wall=1.5)) as sandbox:
        sandbox._ask({"source": source})
        with pytest.raises(ProgramError, match="no request read"):
            sandbox.call("f", "x" * 200_000)
    assert time.monotonic() - started < 4


def test_a_sandbox_that_does_not_start_is_no_wrong_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crow.evaluation.sandbox.WORKER", Path("nowhere.py"))
    with pytest.raises(ResourceError, match="did not start"):
        check_program(ADD, RIGHT, QUICK)


def eventually(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 3
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def running() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_without_namespaces_limits_and_deadline_remain() -> None:
    with Sandbox(QUICK, isolated=False) as sandbox:
        sandbox.run(RIGHT)
        assert sandbox.call("add", 2, 3) == 5
    for source in (HOSTILE["endless loop"], HOSTILE["memory bomb"]):
        with Sandbox(QUICK, isolated=False) as sandbox, pytest.raises(ProgramError):
            sandbox.run(source)
