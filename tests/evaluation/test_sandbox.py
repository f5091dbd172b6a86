"""Programs that misbehave, each in its own way, and what the sandbox makes of them."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetrain.errors import UserError
from edgetrain.evaluation.sandbox import OUTPUT_KB, Outcome, judged, run_program

ROOT = Path(__file__).resolve().parents[2]


def confines() -> bool:
    try:
        return run_program("").passed
    except UserError:
        return False


confined = pytest.mark.skipif(not confines(), reason="this machine gives no user namespaces")


@confined
@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("print(6 * 7)", "passed", ""),
        ("assert 6 * 7 == 41, 'wrong'", "failed", "AssertionError: wrong"),
        ("def f(:\n    pass", "syntax error", "SyntaxError: invalid syntax"),
        ("eval('1 +')", "failed", "SyntaxError: invalid syntax"),  # its own, at run time
        ("import sys; sys.exit(0)", "failed", "SystemExit: 0"),
        ("import os; os._exit(0)", "failed", "left with exit code 0 before its end"),
        ("def f():\n    f()\nf()", "failed", "RecursionError: maximum recursion depth exceeded"),
        ("import ctypes; ctypes.string_at(0)", "failed", "SIGSEGV"),
        ("import numpy", "failed", "ModuleNotFoundError: No module named 'numpy'"),
        ("blocks = []\nwhile True:\n    blocks.append(bytearray(2**24))", "out of memory", ""),
        ("while True: print('x' * 1000)", "too much output", f"printed more than {OUTPUT_KB} KiB"),
    ],
)
def test_a_program_is_judged_by_how_it_ends(program: str, status: str, detail: str) -> None:
    outcome = run_program(program)
    assert (outcome.status, outcome.detail) == (status, detail)
    assert outcome.passed == (status == "passed")
    assert len(outcome.output) <= OUTPUT_KB * 1024 + 1


@confined
@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_ends_when_its_time_is_up(program: str) -> None:
    assert run_program(program, seconds=0.5).status == "timed out"


@confined
def test_processor_time_is_limited_besides_wall_time() -> None:
    """What several processes could burn at once, each may for the seconds alone; one more, and it is killed."""
    outcome = run_program("import resource; print(resource.getrlimit(resource.RLIMIT_CPU))", seconds=2.0)
    assert outcome.output == "(2, 3)\n"


@confined
def test_a_program_has_no_network() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # reachable from here
        address = server.getsockname()
        socket.create_connection(address).close()
        outcome = run_program(f"import socket; socket.create_connection({address}, 1)")
    assert outcome.detail == "OSError: [Errno 101] Network is unreachable"


@confined
def test_a_fork_bomb_is_bounded() -> None:
    """Children are counted where they are born; each would live for a minute."""
    program = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        count += 1
except BlockingIOError:
    print(count)
"""
    outcome = run_program(program)
    assert outcome.passed and 8 <= int(outcome.output) <= 32


@confined
def test_what_a_program_starts_dies_with_it() -> None:
    """A daemon in a session of its own, which would write into the pipe after its parent's end."""
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(1)
    print("still here", flush=True)
    time.sleep(60)
"""
    started = time.monotonic()
    outcome = run_program(program)
    assert outcome.passed and outcome.output == ""
    assert time.monotonic() - started < 30


@confined
@pytest.mark.parametrize(
    "attack",
    ["os.kill(os.getppid(), signal.SIGKILL)", "os.killpg(0, signal.SIGKILL)", "os.kill(-1, signal.SIGKILL)"],
)
def test_a_program_cannot_kill_what_watches_it(attack: str) -> None:
    """Whether the signal is refused, ignored, or hits only the program itself: we live, and it has an outcome."""
    assert run_program(f"import os, signal\n{attack}", seconds=1.0).status in ("failed", "passed")


@confined
def test_files_are_limited_and_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    huge = run_program("with open('huge', 'wb') as file:\n    while True:\n        file.write(bytes(2**20))")
    assert huge.detail == "OSError: [Errno 28] No space left on device"
    for program in (
        f"open({str(tmp_path / 'secret')!r}).read()",
        f"open('/..' + {str(tmp_path / 'secret')!r}).read()",
        f"import os; os.listdir({str(Path.home())!r} + '/.ssh')",
        "open('/etc/passwd').read()",
    ):
        assert run_program(program).detail.startswith("FileNotFoundError")
    read_only = "import os; print(all(os.statvfs(place).f_flag & os.ST_RDONLY for place in {}))"
    assert run_program(read_only.format(("/", "/usr", "/dev/null", sys.base_prefix))).output == "True\n"


@confined
def test_the_machines_root_is_not_behind_the_programs() -> None:
    """A parent of the root, where pivot_root leaves the old one, is the new root itself."""
    assert run_program("import os; print(os.listdir('/..') == os.listdir('/'))").output == "True\n"


@confined
def test_a_program_begins_alone_in_an_empty_folder() -> None:
    outcome = run_program("import os; print(os.listdir(), os.environ['HOME'] == os.getcwd(), len(os.environ))")
    assert outcome.output == "['program.py'] True 5\n"  # HOME, TMPDIR, PATH, PYTHONHASHSEED, and Python's LC_CTYPE


@confined
def test_a_program_has_no_privilege_left() -> None:
    """As nobody, it can neither mount nor make its root writable, not even in a user namespace of its own."""
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
remount = lambda: libc.mount(None, b"/usr", None, 0x1020, None)
print(os.getuid(), remount(), libc.unshare(0x10020000) and 0, remount())
"""
    assert run_program(program).output == "65534 -1 0 -1\n"


@confined
def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    run_program("open('file', 'w').write('x')")
    assert list(tmp_path.iterdir()) == [] and len(os.listdir("/proc/self/fd")) == before


def test_without_confinement_the_limits_still_hold() -> None:
    assert run_program("print(1)", confined=False) == Outcome("passed", "", "1\n", pytest.approx(0, abs=30))
    assert run_program("while True: pass", 0.5, confined=False).status == "timed out"
    assert run_program("x = bytearray(2**30)", confined=False).status == "out of memory"
    assert "File too large" in run_program("open('f', 'wb').write(bytes(2**27))", confined=False).detail
    supervisor = run_program("import os; os.kill(os.getppid(), 9)\nimport time; time.sleep(1)", 5.0, confined=False)
    assert supervisor.detail == "ended its own supervisor"


@pytest.mark.skipif(not (confines() and shutil.which("unshare")), reason="needs unshare(1) and user namespaces")
def test_a_machine_without_namespaces_is_refused() -> None:
    """Inside a namespace that allows no further ones."""
    code = "from edgetrain.evaluation.sandbox import run_program; print(run_program('print(1)'))"
    forbid = f'echo 0 > /proc/sys/user/max_user_namespaces; exec "{sys.executable}" -c "{code}"'
    done = subprocess.run(["unshare", "-Ur", "sh", "-c", forbid], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "cannot be confined on this machine: unshare" in done.stderr
    assert "Outcome" not in done.stdout


def test_a_refusal_is_a_sentence_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"cannot be confined on this machine: unshare: x; .* confined=false"):
        judged({"refused": "unshare: x"}, "", True, False)
