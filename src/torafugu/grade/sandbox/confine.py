"""Runs as a process of its own (`python -c`): confines itself as its one argument says, then becomes the program.

Standard library only; its user may be unable to read our package. It reports on a descriptor that closes on exec:
`ready` alone means that the program has started, anything else is why it has not.
"""

import base64
import ctypes
import json
import os
import resource
import sys
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_LEAST_ABI = 3
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_THREADS = 64


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, first: Any, second: Any = 0) -> None:
    _check(_LIBC.prctl(option, first, second, 0, 0), f"prctl {option}")


def _restrict_files(readable: list[str]) -> None:
    abi = _check(_LIBC.syscall(_CREATE_RULESET, None, 0, 1), "Landlock is not there")
    if abi < _LEAST_ABI:
        raise OSError(f"Landlock ABI {abi}: expected {_LEAST_ABI} or later (Linux 6.2)")
    every = (1 << 16) - 1 if abi >= 5 else (1 << 15) - 1
    # struct landlock_ruleset_attr: files; TCP from ABI 4 (both rights); abstract sockets and signals from ABI 6
    fields = [every] + [3] * (abi >= 4) + [3] * (abi >= 6)
    attribute = (ctypes.c_uint64 * len(fields))(*fields)
    rules = _check(_LIBC.syscall(_CREATE_RULESET, attribute, ctypes.sizeof(attribute), 0), "landlock_create_ruleset")
    for path in readable:
        if os.path.exists(path):
            _allow(rules, path, _EXECUTE | _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0))
    for device in ("/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
        _allow(rules, device, _READ_FILE)
    _allow(rules, "/dev/null", _READ_FILE | _WRITE_FILE | _TRUNCATE)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _check(_LIBC.syscall(_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    # struct landlock_path_beneath_attr, packed: u64 rights, s32 descriptor
    rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
    _check(_LIBC.syscall(_ADD_RULE, rules, 1, rule, 0), f"landlock_add_rule {path}")
    os.close(fd)


def _filter_calls(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(Program(len(program) // 8, program)))


def _limit(order: dict[str, Any]) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_CPU, order["cpu_s"]),
        (resource.RLIMIT_NPROC, _tasks_of_this_user() + _THREADS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        ceiling = resource.getrlimit(kind)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (value, value))


def _tasks_of_this_user() -> int:
    """Without a namespace RLIMIT_NPROC counts all of the user's tasks; each is a link more of /proc/N/task."""
    count = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            found = os.stat(f"/proc/{name}/task")
        except OSError:
            continue  # it has ended
        count += found.st_nlink - 2 if found.st_uid == os.getuid() else 0
    return count


def _confine(order: dict[str, Any]) -> None:
    _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != order["parent"]:
        raise OSError("the parent has died")
    os.chdir(order["box"])
    _limit(order)
    _restrict_files(order["readable"])
    _filter_calls(base64.b64decode(order["filter"]))


def main() -> None:
    order = json.loads(sys.argv[1])
    report = order["report"]
    os.set_inheritable(report, False)
    try:
        _confine(order)
        os.write(report, b"ready")
        os.execv(order["argv"][0], order["argv"])
    except OSError as error:
        os.write(report, str(error).encode())
        os._exit(127)


if __name__ == "__main__":
    main()
