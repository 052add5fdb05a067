"""Confine this process for good: no network, no other files, no new processes, bounded memory.

A confined process cannot undo it. Four means are combined, and none needs a privilege: Landlock
(files), seccomp (system calls), dropped capabilities, and resource limits. The file imports the
standard library only, because the processes that run foreign code load nothing else.

Sources: Linux `Documentation/userspace-api/landlock.rst` and `seccomp_filter.rst`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


class IsolationError(RuntimeError):
    """This machine cannot confine a process; the text says what is missing and the remedy."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0  # of wall clock; CPU time is limited to the same, rounded up
    memory_mb: int = 512  # address space of a process
    file_mb: int = 4  # the largest file, and the longest output
    scratch_mb: int = 16  # all files in the scratch folder together
    processes: int = 0  # 0: the program may not start any process


# -- system calls ----------------------------------------------------------------------------------

# Refused to every program: other processes, network, keys, mounts, clocks, memory outside the
# limits, and the attributes of files, which Landlock does not guard.
X86_64 = """
ptrace=101 process_vm_readv=310 process_vm_writev=311 kcmp=312 rt_sigqueueinfo=129
rt_tgsigqueueinfo=297 socket=41 mount=165 umount2=166 pivot_root=155 chroot=161 unshare=272
setns=308 bpf=321 perf_event_open=298 userfaultfd=323 keyctl=250 add_key=248 request_key=249
shmget=29 shmat=30 shmctl=31 semget=64 msgget=68 mq_open=240 memfd_create=319 setrlimit=160
personality=135 name_to_handle_at=303 open_by_handle_at=304 fanotify_init=300
sched_setscheduler=144 sched_setattr=314 sched_setparam=142 chown=92 fchown=93 lchown=94
fchownat=260 setxattr=188 lsetxattr=189 fsetxattr=190 removexattr=197 lremovexattr=198
fremovexattr=199 utime=132 utimes=235 futimesat=261 utimensat=280 truncate=76 kexec_load=246
init_module=175 delete_module=176 finit_module=313 reboot=169 swapon=167 swapoff=168
sethostname=170 setdomainname=171 settimeofday=164 clock_settime=227 acct=163 syslog=103
quotactl=179 ioperm=173 iopl=172 vhangup=153 modify_ldt=154 lookup_dcookie=212
migrate_pages=256 move_pages=279 setpriority=141 ioprio_set=251 mknod=133 mknodat=259
"""
AARCH64 = """
ptrace=117 process_vm_readv=270 process_vm_writev=271 kcmp=272 rt_sigqueueinfo=138
rt_tgsigqueueinfo=240 socket=198 mount=40 umount2=39 pivot_root=41 chroot=51 unshare=97
setns=268 bpf=280 perf_event_open=241 userfaultfd=282 keyctl=219 add_key=217 request_key=218
shmget=194 shmat=196 shmctl=195 semget=190 msgget=186 mq_open=180 memfd_create=279
setrlimit=164 personality=92 name_to_handle_at=264 open_by_handle_at=265 fanotify_init=262
sched_setscheduler=119 sched_setattr=274 sched_setparam=118 fchown=55 fchownat=54 setxattr=5
lsetxattr=6 fsetxattr=7 removexattr=14 lremovexattr=15 fremovexattr=16 utimensat=88 truncate=45
kexec_load=104 init_module=105 delete_module=106 finit_module=273 reboot=142 swapon=224
swapoff=225 sethostname=161 setdomainname=162 settimeofday=170 clock_settime=112 acct=89
syslog=116 quotactl=60 vhangup=58 lookup_dcookie=18 migrate_pages=238 move_pages=239
setpriority=140 ioprio_set=30 mknodat=33
"""
SINCE_5_1 = """
pidfd_send_signal=424 io_uring_setup=425 io_uring_enter=426 io_uring_register=427 open_tree=428
move_mount=429 fsopen=430 fsconfig=431 fsmount=432 fspick=433 pidfd_open=434 pidfd_getfd=438
process_madvise=440 mount_setattr=442 quotactl_fd=443 memfd_secret=447 process_mrelease=448
setxattrat=463 removexattrat=466 open_tree_attr=467
"""  # numbers from 424 on are the same on every architecture

# (AUDIT_ARCH, refused to all, refused where no process may be started, chmod family, special)
TABLES = {
    "x86_64": (
        0xC000003E,
        X86_64,
        "fork=57 vfork=58 execve=59 execveat=322 kill=62 tkill=200 tgkill=234",
        "chmod=90 fchmod=91 fchmodat=268 fchmodat2=452",
        {"clone": 56, "prlimit64": 302, "prctl": 157},
    ),
    "aarch64": (
        0xC00000B7,
        AARCH64,
        "execve=221 execveat=281 kill=129 tkill=130 tgkill=131",
        "fchmod=52 fchmodat=53 fchmodat2=452",
        {"clone": 220, "prlimit64": 261, "prctl": 167},
    ),
}
CLONE3 = 435
CLONE_THREAD, CLONE_NAMESPACES = 0x00010000, 0x7E020080
X32_BIT = 0x40000000
EPERM, ENOSYS = 1, 38

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # REFUSE | errno
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def _numbers(table: str) -> list[int]:
    return [int(entry.split("=")[1]) for entry in table.split()]


def _op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _refuse(number: int, error: int = EPERM) -> bytes:
    return _op(JUMP_EQUAL, number, 0, 1) + _op(RETURN, REFUSE | error)


def _when(number: int, block: bytes) -> bytes:
    """Return code that runs a block, which must return, for one system call."""
    return _op(JUMP_EQUAL, number, 0, len(block) // 8) + block


def seccomp_program(machine: str, may_start_processes: bool) -> bytes:
    """Return the filter as BPF instructions of 8 bytes.

    Args:
        machine: `x86_64` or `aarch64`.
        may_start_processes: False refuses fork, exec and signals, so that a program stays one
            process, and a killed program leaves nothing behind.
    """
    architecture, refused, processes, modes, special = TABLES[machine]
    allow, refuse = _op(RETURN, ALLOW), _op(RETURN, REFUSE | EPERM)
    clone_of = CLONE_NAMESPACES if may_start_processes else CLONE_THREAD
    hit, miss = (refuse, allow) if may_start_processes else (allow, refuse)
    clone = _op(LOAD, ARGUMENT) + _op(JUMP_BITS, clone_of, 0, 1) + hit + miss
    new_limit = ARGUMENT + 16  # prlimit64's third argument: a pointer, or 0 to read only
    prlimit = (
        _op(LOAD, new_limit)
        + _op(JUMP_EQUAL, 0, 0, 3)
        + _op(LOAD, new_limit + 4)
        + _op(JUMP_EQUAL, 0, 0, 1)
        + allow
        + refuse
    )
    prctl = (  # 1: the signal at the parent's death; 4: whether others may read this process
        _op(LOAD, ARGUMENT) + _op(JUMP_EQUAL, 1, 1, 0) + _op(JUMP_EQUAL, 4, 0, 1) + refuse + allow
    )
    program = _op(LOAD, ARCHITECTURE) + _op(JUMP_EQUAL, architecture, 1, 0) + _op(RETURN, KILL)
    program += _op(LOAD, NUMBER)
    if machine == "x86_64":
        program += _op(JUMP_AT_LEAST, X32_BIT, 0, 1) + refuse
    for number in _numbers(refused) + _numbers(SINCE_5_1):
        program += _refuse(number)
    for number in _numbers(modes):  # compilers change file modes: the call succeeds without effect
        program += _refuse(number, 0 if may_start_processes else EPERM)
    if not may_start_processes:
        for number in _numbers(processes):
            program += _refuse(number)
    program += _refuse(CLONE3, ENOSYS)  # a filter cannot read its flags; libc falls back to clone
    program += _when(special["clone"], clone)
    program += _when(special["prlimit64"], prlimit) + _when(special["prctl"], prctl)
    return program + allow


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def filter_system_calls(may_start_processes: bool) -> None:
    """Install the filter in this process and in all that it starts."""
    code = seccomp_program(platform.machine(), may_start_processes)
    program = _Program(len(code) // 8, code)
    _checked(LIBC.prctl(22, 2, ctypes.byref(program), 0, 0), "seccomp")  # PR_SET_SECCOMP, FILTER


# -- files -----------------------------------------------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE, READ, READ_FOLDER, REMOVE_FILE, MAKE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 32, 256
TRUNCATE = 1 << 14
REMOVE_FOLDER, MAKE_FOLDER = 1 << 4, 1 << 7
SCOPES = 0b11  # abstract sockets and signals stay inside


def landlock_version() -> int:
    """Return the version of Landlock in this kernel, 0 where there is none."""
    return max(0, int(LIBC.syscall(CREATE_RULESET, None, 0, 1)))


def restrict_files(readable: list[str], scratch: str, folders: bool = False) -> None:
    """Refuse all files but the readable folders and one scratch folder.

    Args:
        readable: files and folders that may be read and executed; missing ones are left out.
        scratch: the folder that may be written; empty for none.
        folders: whether folders may be made in it.
    """
    version = landlock_version()
    files = (1 << (13 + (version >= 2) + (version >= 3))) - 1
    if version >= 5:
        files |= 1 << 15  # ioctl on devices
    attributes = struct.pack("=QQQ", files, 3, SCOPES)
    size = 8 if version < 4 else 16 if version < 6 else 24
    _checked(LIBC.prctl(38, 1, 0, 0, 0), "no_new_privs")
    ruleset = _checked(LIBC.syscall(CREATE_RULESET, attributes[:size], size, 0), "Landlock")
    for path in readable:
        _allow(ruleset, path, files & (EXECUTE | READ | READ_FOLDER))
    _allow(ruleset, "/dev/null", files & (READ | WRITE | TRUNCATE))
    for device in ("/dev/zero", "/dev/urandom"):
        _allow(ruleset, device, READ)
    if scratch:
        more = REMOVE_FOLDER | MAKE_FOLDER | EXECUTE if folders else 0
        rights = READ | WRITE | READ_FOLDER | REMOVE_FILE | MAKE_FILE | TRUNCATE | more
        _allow(ruleset, scratch, files & rights)
    _checked(LIBC.syscall(RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= EXECUTE | WRITE | READ | TRUNCATE
    rule = struct.pack("=Qi", rights, place)
    try:
        _checked(LIBC.syscall(ADD_RULE, ruleset, 1, rule, 0), f"Landlock's rule for {path}")
    finally:
        os.close(place)


def python_folders() -> list[str]:
    """Return the folders that a Python program of the standard library reads."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return sorted(str(p) for p in paths if p) + ["/usr/lib", "/lib", "/lib64", "/usr/lib64"]


# -- the whole -------------------------------------------------------------------------------------


def confine(limits: Limits) -> None:
    """Confine this process except for its files, which `restrict_files` restricts before.

    Args:
        limits: see `Limits`.
    """
    LIBC.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: end with the parent
    _checked(LIBC.prctl(38, 1, 0, 0, 0), "no_new_privs")
    LIBC.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: processes of this user cannot read its memory
    _drop_capabilities()
    _limit(limits)
    filter_system_calls(limits.processes > 0)


def become(uid: int) -> None:
    """Become another user, where this process is root: root has no limit on processes."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def missing() -> str:
    """Return what this machine lacks for isolation, with the remedy; empty if it lacks nothing."""
    if sys.platform != "linux":
        return f"{sys.platform} has neither Landlock nor seccomp. Run on Linux, or use a container."
    if platform.machine() not in TABLES:
        return f"There is no table of system calls for {platform.machine()}. Use a container."
    if landlock_version() < 1:
        return (
            "This kernel has no Landlock (Linux 5.13 or later, and `landlock` in"
            " /sys/kernel/security/lsm). Boot with lsm=landlock,..., or use a container."
        )
    if not Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        return "This kernel has no seccomp filters (CONFIG_SECCOMP_FILTER). Use a container."
    return ""


def _drop_capabilities() -> None:
    for capability in range(64):
        if LIBC.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP; ends at the last one
            break
    LIBC.prctl(47, 4, 0, 0, 0)  # PR_CAP_AMBIENT, CLEAR_ALL
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked(LIBC.capset(header, bytes(24)), "capset")


def _limit(limits: Limits) -> None:
    seconds = int(limits.seconds) + 1
    mib = 1 << 20
    for name, value in {
        resource.RLIMIT_AS: limits.memory_mb * mib,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: limits.file_mb * mib,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }.items():
        resource.setrlimit(name, (value, value))
    if limits.processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (limits.processes, limits.processes))


def _checked(result: int, name: str) -> int:
    if result < 0:
        error = os.strerror(ctypes.get_errno())
        raise IsolationError(f"{name} was refused by the kernel: {error}.")
    return int(result)
