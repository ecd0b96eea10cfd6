"""The seccomp filter of both tiers, as the bytes of a classic BPF program: what such programs do not need is refused.

Refusals return EPERM, so that programs fail with an error that they can print. `clone3` returns ENOSYS: its flags lie
in memory that a filter cannot read, and the C library then takes `clone`, whose flags it can.
Numbers are those of the kernel's own tables (asm/unistd_64.h; asm-generic/unistd.h for aarch64; equal from 424 on).
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import TypeAlias

from .limits import Limits, SandboxUnavailable

__all__ = ["build_filter"]

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_CLONE_NEW_ANY = 0x7E020080
_PR_SET_PDEATHSIG = 1

# name: (x86_64, aarch64), -1 where the architecture has no such call
_Table: TypeAlias = dict[str, tuple[int, int]]
_ALWAYS: _Table = {
    # The network. A socketpair leads nowhere (asyncio needs one), a socket may.
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
    # Other processes: reading, writing, tracing and handling them.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    # Namespaces and mounts.
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "open_tree_attr": (467, 467), "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # Wide doors into the kernel, and its administration.
    "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "personality": (135, 92), "syslog": (103, 116), "acct": (163, 89), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "iopl": (172, -1), "ioperm": (173, -1),
    "modify_ldt": (154, -1), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    # Memory that outlives its mapping, and so escapes RLIMIT_AS.
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}  # fmt: skip
_ALONE: _Table = {
    "fork": (57, -1), "vfork": (58, -1), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
}  # fmt: skip
"""Landlock has no process namespace: without these a program of the same user could be stopped or slowed."""
_UNWRITABLE: _Table = {
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1),
    "lchown": (94, -1), "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1),
    "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
}  # fmt: skip
"""Landlock does not cover the attributes of files."""
_CLONE, _CLONE3, _PRCTL, _PRLIMIT = (56, 220), (435, 435), (157, 167), (302, 261)


def build_filter(limits: Limits, machine: str | None = None) -> bytes:
    """The program for this machine's architecture (or the one named), as seccomp(2) and `bwrap --seccomp` take it.

    Raises:
        SandboxUnavailable: no table for this architecture.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        known = ", ".join(_AUDIT_ARCH)
        raise SandboxUnavailable(f"architecture {machine!r}: no table of system calls; expected one of {known}")
    column = 0 if machine == "x86_64" else 1
    tables = [_ALWAYS]
    if limits.processes == 1:
        tables.append(_ALONE)
    if limits.disk_bytes == 0:
        tables.append(_UNWRITABLE)
    denied = sorted({row[column] for table in tables for row in table.values()} - {-1})
    program = [_load(4), _jump(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _KILL, _load(0)]
    if machine == "x86_64":
        program += [_jump(_AT_LEAST, _X32_BIT, 0, 1), _refuse(errno.EPERM)]
    for number in denied:
        program += [_jump(_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    program += [_jump(_EQUAL, _CLONE3[column], 0, 1), _refuse(errno.ENOSYS)]
    if limits.processes == 1:
        program += _when(_CLONE[column], _jump(_ANY_BIT, _CLONE_THREAD, 1, 0))
    program += _when(_CLONE[column], _jump(_ANY_BIT, _CLONE_NEW_ANY, 0, 1))
    program += _when(_PRLIMIT[column], _jump(_EQUAL, 0, 1, 0))
    program += _when(_PRCTL[column], _jump(_EQUAL, _PR_SET_PDEATHSIG, 0, 1))
    return b"".join([*program, _ALLOW])


_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    """Of `struct seccomp_data`: 0 the call's number, 4 the architecture, 16 the low half of its first argument."""
    return _instruction(0x20, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(kind, value, if_true, if_false)


def _refuse(code: int) -> bytes:
    return _instruction(_RETURN, 0x00050000 | code)


_ALLOW = _instruction(_RETURN, 0x7FFF0000)
_KILL = _instruction(_RETURN, 0x80000000)


def _when(number: int, test: bytes) -> list[bytes]:
    """For one call: `test` falls through to the refusal or skips it; afterwards the number is loaded again."""
    return [_jump(_EQUAL, number, 0, 4), _load(16), test, _refuse(errno.EPERM), _load(0)]
