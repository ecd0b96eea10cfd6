"""The sandbox's conformance tests: every attack is run in every tier that works here, as root and as another user.

Each attack is a program that prints LEAK when it gets what it must not get, and each is shown to leak without a sandbox
where that does no harm: an attack that could never succeed proves nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torafugu.errors import GradeError
from torafugu.grade.sandbox import Limits, Probe, Ran, SandboxUnavailable, find_sandbox, probe_sandboxes, run
from torafugu.grade.sandbox.run import TIERS, make_sandbox

if sys.platform != "linux":
    pytest.skip("sandboxes exist on Linux only", allow_module_level=True)

from torafugu.grade.sandbox.child import find_python
from torafugu.grade.sandbox.seccomp import build_filter

OTHER_USER = 65533
CANARY = "canary-of-the-server"
QUICK = Limits(wall_s=5.0, memory_bytes=256 << 20, output_bytes=1 << 16)

# Replaced in the programs: SECRET a file that all may read and write, OPEN a directory in which all may write, PORT a
# listening socket's, PARENT the process that runs the sandbox.
ATTACKS = {
    "the server's environment": """
        import glob, os
        for path in ["/proc/1/environ", "/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
            attempt(lambda: CANARY in open(path).read())
        attempt(lambda: CANARY in str(os.environ))
        """,
    "files outside": """
        import os
        for path in ["SECRET", "/etc/passwd", "/proc/PARENT/cmdline", "/proc/PARENT/root/etc/passwd"]:
            attempt(lambda: len(open(path).read()) >= 0)
        for path in ["OPEN", "/home", "/etc", "/root"]:
            attempt(lambda: set(os.listdir(path)) - {"ld.so.cache"})
        """,
    "writing outside": """
        import os
        for path in ["OPEN/new", "/tmp/new", "/dev/shm/new", "/new", "/usr/new", "/box/new", "new", "program.py"]:
            attempt(lambda: open(path, "w").write("x") and not open(path, "w").close())
        attempt(lambda: open("SECRET", "a").write("x"))
        attempt(lambda: os.mkdir("OPEN/directory") is None)
        attempt(lambda: os.chmod("SECRET", 0o777) is None)
        attempt(lambda: os.truncate("SECRET", 0) is None)
        attempt(lambda: os.utime("SECRET") is None)
        attempt(lambda: os.rename("SECRET", "OPEN/renamed") is None)
        """,
    "the network": """
        import socket
        attempt(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=1))
        attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)))
        attempt(lambda: socket.socket(socket.AF_UNIX))
        attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
        """,
    "signals to the server": """
        import os, resource, signal
        attempt(lambda: os.kill(PARENT, 0) is None)
        attempt(lambda: resource.prlimit(PARENT, resource.RLIMIT_NOFILE))
        attempt(lambda: os.sched_setaffinity(PARENT, [0]) is None)
        attempt(lambda: os.pidfd_open(PARENT))
        """,
    "another process": """
        import os, subprocess
        attempt(lambda: subprocess.run(["/usr/bin/true"]))
        attempt(lambda: os.posix_spawn("/usr/bin/true", ["true"], {}))
        attempt(lambda: os.fork() or os._exit(0))
        attempt(lambda: os.system("true") == 0)
        """,
    "memory beside the limit": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        attempt(lambda: len(bytearray(512 << 20)))
        attempt(lambda: os.memfd_create("x") > 0)
        attempt(lambda: libc.shmget(0, 4096, 0o1600) >= 0)
        """,
    "namespaces": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        attempt(lambda: libc.unshare(0x10000000) == 0)
        attempt(lambda: libc.ptrace(0, 0, 0, 0) == 0)
        """,
    "more privileges": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        attempt(lambda: os.getuid() == 0)
        attempt(lambda: libc.prctl(39, 0, 0, 0, 0) == 0)  # PR_GET_NO_NEW_PRIVS
        attempt(lambda: os.setuid(0) is None)
        """,
    "inherited descriptors": """
        import os
        for fd in range(3, 64):
            attempt(lambda: os.fstat(fd))
        """,
    "hundreds of threads": """
        import threading
        threading.stack_size(1 << 15)
        wait = threading.Event()
        attempt(lambda: [threading.Thread(target=wait.wait, daemon=True).start() for _ in range(500)])
        wait.set()
        """,
}
ATTEMPT = f"""
CANARY = {CANARY!r}
def attempt(action):
    try:
        if action():
            print("LEAK", flush=True)
    except (OSError, RuntimeError, MemoryError, UnicodeError):
        pass
"""


class Target:
    """What the attacks aim at: files, a socket and an environment that a program without a sandbox could reach."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o777)
        self.open = directory / "open"
        self.open.mkdir()
        self.open.chmod(0o777)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.secret = directory / "secret"

    def program(self, attack: str) -> bytes:
        self.secret.unlink(missing_ok=True)
        self.secret.write_text("secret")
        self.secret.chmod(0o666)
        source = ATTEMPT + textwrap.dedent(ATTACKS[attack]) + "\nprint('done')\n"
        words = {"SECRET": self.secret, "OPEN": self.open, "PARENT": os.getpid()}
        for word, value in words.items():
            source = source.replace(word, str(value))
        return source.replace("PORT)", f"{self.listener.getsockname()[1]})").encode()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="target-") as directory:
        found = Target(Path(directory))
        os.environ["FUGU_TEST_CANARY"] = CANARY
        yield found
        del os.environ["FUGU_TEST_CANARY"]
        found.listener.close()


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Each tier that works here; the others are skipped with the reason that users are told."""
    problem = {probe.tier: probe.problem for probe in probe_sandboxes()}[request.param]
    if problem is not None:
        pytest.skip(f"{request.param}: {problem}")
    return str(request.param)


def run_program(tier: str, source: str | bytes, limits: Limits = QUICK, stdin: bytes = b"") -> Ran:
    program = source if isinstance(source, bytes) else textwrap.dedent(source).encode()
    return make_sandbox(tier).run({"program.py": program}, [find_python(), "-I", "-B", "program.py"], stdin, limits)


def as_other_user(action: Callable[[], str]) -> str:
    """What `action` says, or raises, in a child of ours; if we are root it has become another user."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on
        pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
                os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as for any process of that user
            find_python.cache_clear()
            said = action()
        except Exception as error:  # noqa: BLE001  # told to the parent, which judges it
            said = f"{type(error).__name__}: {error}"
        os.write(theirs, said.encode()[:60000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_fail(tier: str, target: Target, attack: str) -> None:
    """An attack ends by itself in the sandbox and gets nothing."""
    ran = run_program(tier, target.program(attack))
    assert (ran.stdout, ran.status) == (b"done\n", 0), ran
    assert target.secret.read_text() == "secret"
    assert not any(target.open.iterdir())


def test_attacks_fail_as_another_user(tier: str, target: Target) -> None:
    """What root's sandbox holds, that of an ordinary user holds as well."""
    if os.geteuid() != 0:
        pytest.skip("not root: the other tests run as an ordinary user already")

    def attack_all() -> str:
        if (ran := run_program(tier, "print('works')")).stdout != b"works\n":
            return f"skip: {ran}"
        held = []
        for attack in ATTACKS:
            ran = run_program(tier, target.program(attack))
            held += [] if (ran.stdout, ran.status) == (b"done\n", 0) else [f"{attack}: {ran}"]
        return "; ".join(held) or "all held"

    said = as_other_user(attack_all)
    if said.startswith(("SandboxUnavailable", "skip")):
        pytest.skip(f"{tier} as another user: {said}")
    assert said == "all held"


HARMLESS = ("the server's environment", "files outside", "the network", "signals to the server", "another process")


@pytest.mark.parametrize("attack", [*HARMLESS, "memory beside the limit", "hundreds of threads"])
def test_attacks_succeed_without_a_sandbox(target: Target, attack: str) -> None:
    """The attacks are real: without a sandbox the same program gets what it wants."""
    done = subprocess.run([find_python(), "-I", "-c", target.program(attack)], capture_output=True, check=True)
    assert b"LEAK" in done.stdout


def processes_with(marker: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def test_a_fork_bomb_is_over_with_its_time(tier: str) -> None:
    """Processes that multiply die with the sandbox at the wall clock, root's as well; none is left."""
    if tier == "landlock":
        pytest.skip("landlock: no process can be started, see the attack")
    bomb = b"import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    started = time.monotonic()
    ran = make_sandbox(tier).run(
        {"p.py": bomb},
        [find_python(), "-I", "p.py", "marker-of-the-bomb"],
        b"",
        Limits(wall_s=0.5, processes=16),
    )
    assert ran.timed_out
    assert time.monotonic() - started < 5
    assert processes_with("marker-of-the-bomb") == []


def test_processes_are_counted_for_each_sandbox(tier: str) -> None:
    """With `processes` a program gets that many, the first included, whatever else the user runs."""
    if tier == "landlock":
        pytest.skip("landlock: refuses such limits")
    count = """
        import os, time
        made = 0
        try:
            while made < 50:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
        except OSError:
            pass
        print(made, flush=True)
        """
    ran = run_program(tier, count, Limits(processes=8))
    assert (ran.stdout, ran.timed_out) == (b"7\n", False)


def test_nothing_outlives_its_run(tier: str) -> None:
    """A process that left its session and closed its pipes is gone when `run` returns."""
    if tier == "landlock":
        pytest.skip("landlock: no process can be started, see the attack")
    daemon = b"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        time.sleep(60)
    os._exit(0)
print("left one")
"""
    limits = Limits(processes=8)
    ran = make_sandbox(tier).run({"p.py": daemon}, [find_python(), "-I", "p.py", "marker-of-orphans"], b"", limits)
    assert ran.stdout == b"left one\n"
    assert processes_with("marker-of-orphans") == []


def test_no_orphans_are_left_to_init(tier: str) -> None:
    """A process that would inherit all orphans of ours inherits none, after ends of every kind."""

    def adopt() -> str:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        for _ in range(5):
            run_program(tier, "print(1)")
        run_program(tier, "import os; os.abort()")
        run_program(tier, "while True: pass", Limits(wall_s=0.5))
        try:
            return f"inherited {os.waitpid(-1, 0)}"
        except ChildProcessError:
            return "no children"

    said = as_other_user(adopt)
    if said.startswith("SandboxUnavailable"):
        pytest.skip(f"{tier} as another user: {said}")
    assert said == "no children"


@pytest.mark.parametrize("tail", ["while True: pass", "import time; time.sleep(60)"])
def test_the_wall_clock_ends_it(tier: str, tail: str) -> None:
    """A program that ignores signals and has closed its pipes ends at the wall clock, and has no status."""
    source = f"import os, signal\nprint('here', flush=True)\nsignal.signal(15, 1)\nos.close(1); os.close(2)\n{tail}"
    ran = run_program(tier, source, Limits(wall_s=0.8))
    assert (ran.stdout, ran.status, ran.timed_out, ran.flooded) == (b"here\n", None, True, False)


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_flood_is_cut_off(tier: str, descriptor: int) -> None:
    """More output than allowed ends the program; what was allowed is kept."""
    ran = run_program(tier, f"import os\nwhile True: os.write({descriptor}, b'x' * 65536)")
    assert (ran.status, ran.timed_out, ran.flooded) == (None, False, True)
    assert len(ran.stdout + ran.stderr) == QUICK.output_bytes


def test_a_short_flood_counts_too(tier: str) -> None:
    """It makes no difference whether the program was still there when too much was read."""
    ran = run_program(tier, f"print('x' * {QUICK.output_bytes})")
    assert (ran.status, ran.flooded, len(ran.stdout)) == (None, True, QUICK.output_bytes)


def test_a_memory_bomb_hits_the_limit(tier: str) -> None:
    """Memory ends before the machine's does, with an error within the program."""
    ran = run_program(tier, "kept = []\nwhile True: kept.append(bytearray(1 << 24))")
    assert ran.status == 1
    assert b"MemoryError" in ran.stderr


def test_a_writable_box_has_the_size_asked_for(tier: str) -> None:
    """With `disk_bytes` the program can write that much and not more."""
    if tier == "landlock":
        pytest.skip("landlock: refuses such limits")
    write = """
        open("small", "wb").write(b"x" * 100_000)
        try:
            for number in range(100):
                open(f"large{number}", "wb").write(b"x" * 500_000)
        except OSError as error:
            print(number, error.strerror)
        """
    ran = run_program(tier, write, Limits(disk_bytes=1 << 20))
    assert ran.stdout == b"1 No space left on device\n", ran


def test_what_goes_in_and_comes_out(tier: str) -> None:
    """Files below directories, stdin (by name as well), both outputs, and the status, also that of a signal."""
    source = b"import sys; print(open('a/b.txt').read() + sys.stdin.read() + open('/dev/stdin').read()); sys.exit(3)"
    sandbox = make_sandbox(tier)
    ran = sandbox.run({"p.py": source, "a/b.txt": b"1"}, [find_python(), "-I", "p.py"], b"2\n", QUICK)
    assert (ran.stdout, ran.stderr, ran.status) == (b"12\n2\n\n", b"", 3)
    killed = run_program(tier, "import os; print('x', flush=True); os.abort()")
    assert (killed.stdout, killed.status) == (b"x\n", 128 + signal.SIGSEGV)  # abort's own signal is refused


def test_landlock_refuses_what_it_cannot_hold() -> None:
    """Limits that only namespaces can keep are an error there, never ignored."""
    for limits in (Limits(processes=2), Limits(disk_bytes=1)):
        with pytest.raises(SandboxUnavailable, match="install bubblewrap"):
            make_sandbox("landlock").run({}, ["/usr/bin/true"], b"", limits)


def test_a_missing_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bubblewrap that tier says how to get it."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="bwrap is not installed: apt-get install bubblewrap"):
        make_sandbox("bubblewrap").run({}, ["/usr/bin/true"], b"", QUICK)


def test_without_any_tier_nothing_runs() -> None:
    """Where no tier works the error names each reason, and it is the grader's fault, so that nothing is scored."""
    probes = [Probe(tier="bubblewrap", problem="not installed"), Probe(tier="landlock", problem="ABI 1")]
    with pytest.raises(GradeError, match="bubblewrap: not installed; landlock: ABI 1") as caught:
        find_sandbox(probes)
    assert (caught.value.code, caught.value.fault) == ("sandbox_unavailable", "grader")
    with pytest.raises(SandboxUnavailable, match="only on Linux, this is darwin"):
        find_sandbox(probe_sandboxes("darwin"))


def test_the_best_tier_is_taken() -> None:
    """Bubblewrap before Landlock; Landlock only where bubblewrap does not work."""
    works = Probe(tier="landlock", problem=None)
    assert find_sandbox([Probe(tier="bubblewrap", problem=None), works]).name == "bubblewrap"
    assert find_sandbox([Probe(tier="bubblewrap", problem="no"), works]).name == "landlock"


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_files_stay_in_the_box(name: str) -> None:
    """A file's name cannot lead out of the program's directory."""
    with pytest.raises(GradeError, match="below the program's directory"):
        run({name: b""}, ["/usr/bin/true"], b"", QUICK)


def test_a_sandbox_that_does_not_start_in_time_is_no_verdict(tier: str) -> None:
    """Time that ran out before the program began is an error of the sandbox, never a program too slow."""
    with pytest.raises(SandboxUnavailable, match="not started"):
        run_program(tier, "print(1)", Limits(wall_s=1e-9))


def test_senseless_limits_are_refused() -> None:
    """A limit that would forbid everything is a mistake."""
    with pytest.raises(ValueError, match="wall_s"):
        Limits(wall_s=0)


def test_an_unknown_architecture_is_told() -> None:
    """Without a table of its system calls there is no filter, and without a filter no sandbox; aarch64 has one."""
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        build_filter(QUICK, "riscv64")
    assert len(build_filter(QUICK, "aarch64")) % 8 == 0
