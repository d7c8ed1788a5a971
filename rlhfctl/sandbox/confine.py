"""Confine this process for good: no writing, no network, no new processes, little memory (Landlock, seccomp, rlimits).

Three layers of the Linux kernel, each of which refuses by itself most of what a hostile program may try:

- Landlock (kernel 5.13 or newer): files can be read under the given folders only, and written nowhere; no TCP port is
  opened (kernel 6.7), no signal and no abstract socket leaves the process (6.12).
- seccomp: a list of the system calls that a small program needs. Every other call fails with EPERM: sockets, new
  processes, signals, other processes' memory, new limits. Files are opened for reading only.
- rlimits: memory, processor time, file size 0, no core files.

Called by the zygote alone, in a process that does nothing else: none of this can be undone. Standard library only.
Leaves out the time limit (zygote.py) and the choice of a confinement (modes.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

# ---------------------------------------------------------------- Landlock (linux/landlock.h)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Landlock ABI -> all rights on files that it knows. What a ruleset handles and no rule allows is refused."""
_NETWORK_SINCE, _NETWORK_RIGHTS = 4, 0b11  # bind and connect TCP
_SCOPES_SINCE, _SCOPES = 6, 0b11  # abstract Unix sockets, signals

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel offers; 0 without Landlock."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, 0, 1)))


def has_seccomp() -> bool:
    """Tell whether seccomp filters can be written for this machine: Linux on x86_64 or aarch64."""
    return sys.platform.startswith("linux") and platform.machine() in _ARCHITECTURES


def forbid_new_privileges() -> None:
    """Forbid set-user-id programs to give privileges; Landlock and seccomp ask for it. OSError if refused."""
    _require(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def restrict_files(readable: Iterable[str]) -> int:
    """Allow reading beneath the folders `readable` alone, and writing nowhere. Return Landlock's ABI; OSError without.

    Folders that do not exist are left out.
    """
    abi = landlock_abi()
    if not abi:
        raise OSError("the kernel has no Landlock")
    rights = _FILE_RIGHTS[min(abi, max(_FILE_RIGHTS))]
    network = _NETWORK_RIGHTS if abi >= _NETWORK_SINCE else 0
    scopes = _SCOPES if abi >= _SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", rights, network, scopes)
    size = 24 if abi >= _SCOPES_SINCE else 16 if abi >= _NETWORK_SINCE else 8  # older kernels know a shorter struct
    ruleset = _require(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0), "landlock_create_ruleset")
    for path in readable:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = _READ_FILE | _READ_DIR if Path(path).is_dir() else _READ_FILE
        rule = struct.pack("=Qi", allowed, folder)
        _require(_LIBC.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), "landlock_add_rule")
        os.close(folder)
    _require(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    return abi


# ---------------------------------------------------------------- seccomp (linux/seccomp.h, linux/filter.h)

# Name of the machine -> its number in a filter, and the calls that a small program needs. Those of _LIMITED are allowed
# with some arguments only; all calls that are in neither list fail.
_ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        """read 0 write 1 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12
        rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 pread64 17 readv 19 writev 20 access 21 select 23
        sched_yield 24 mremap 25 madvise 28 dup 32 dup2 33 nanosleep 35 getpid 39 exit 60 uname 63 getcwd 79 readlink 89
        gettimeofday 96 getrlimit 97 getrusage 98 sysinfo 99 times 100 getuid 102 getgid 104 geteuid 107 getegid 108
        getppid 110 sigaltstack 131 gettid 186 time 201 futex 202 sched_getaffinity 204 getdents64 217 clock_gettime 228
        clock_getres 229 clock_nanosleep 230 exit_group 231 newfstatat 262 readlinkat 267 faccessat 269 pselect6 270
        ppoll 271 set_robust_list 273 getrandom 318 statx 332 rseq 334 faccessat2 439""",
        {"open": 2, "ioctl": 16, "fcntl": 72, "openat": 257, "prlimit64": 302},
    ),
    "aarch64": (
        0xC00000B7,
        """getcwd 17 dup 23 dup3 24 faccessat 48 close 57 getdents64 61 lseek 62 read 63 write 64 readv 65 writev 66
        pread64 67 pselect6 72 ppoll 73 readlinkat 78 newfstatat 79 fstat 80 exit 93 exit_group 94 futex 98
        set_robust_list 99 nanosleep 101 clock_gettime 113 clock_getres 114 clock_nanosleep 115 sched_getaffinity 123
        sched_yield 124 sigaltstack 132 rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 times 153 uname 160
        getrlimit 163 getrusage 165 gettimeofday 169 getpid 172 getppid 173 getuid 174 geteuid 175 getgid 176
        getegid 177 gettid 178 sysinfo 179 brk 214 munmap 215 mremap 216 mmap 222 mprotect 226 madvise 233
        getrandom 278 statx 291 rseq 293 faccessat2 439""",
        {"ioctl": 29, "fcntl": 25, "openat": 56, "prlimit64": 261},
    ),
}
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _EACCES, _ENOTTY = 1, 13, 25
_LOAD, _EQUALS, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
_X32_CALLS = 0x40000000  # numbers of a second way into the kernel on x86_64
_WRITES = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # write, read-write, create, truncate, append, temporary
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # duplicate, flags of a descriptor: none can send a signal or lock a file


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(number: int, *, high: bool = False) -> bytes:
    return _step(_LOAD, _ARGUMENTS_AT + 8 * number + 4 * high)


def _for_call(number: int, steps: list[bytes]) -> list[bytes]:
    """Return steps that run for one system call only; each path through `steps` ends in a return."""
    return [_step(_EQUALS, number, 0, len(steps)), *steps]


def syscall_filter() -> bytes:
    """Make the filter's program for this machine. OSError on a machine whose calls are not listed here."""
    if not has_seccomp():
        raise OSError(f"no list of system calls for {platform.machine()} on {sys.platform}")
    architecture, listed, limited = _ARCHITECTURES[platform.machine()]
    allow, refuse = _step(_RETURN, _ALLOW), _step(_RETURN, _ERRNO | _EPERM)
    reads_only = [_step(_HAS_BIT, _WRITES, 0, 1), _step(_RETURN, _ERRNO | _EACCES), allow]
    steps = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_EQUALS, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_AT_LEAST, _X32_CALLS, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for number in listed.split()[1::2]:
        steps += _for_call(int(number), [allow])
    steps += _for_call(limited["ioctl"], [_step(_RETURN, _ERRNO | _ENOTTY)])
    steps += _for_call(limited["openat"], [_argument(2), *reads_only])
    if "open" in limited:
        steps += _for_call(limited["open"], [_argument(1), *reads_only])
    commands = [step for one in _FCNTL_COMMANDS for step in (_step(_EQUALS, one, 0, 1), allow)]
    steps += _for_call(limited["fcntl"], [_argument(1), *commands, refuse])
    new_limit = [_argument(2), _step(_EQUALS, 0, 1, 0), refuse, _argument(2, high=True), _step(_EQUALS, 0, 1, 0)]
    steps += _for_call(limited["prlimit64"], [*new_limit, refuse, allow])  # limits may be read, not changed
    return b"".join([*steps, refuse])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def restrict_calls(program: bytes) -> None:
    """Set the filter that syscall_filter() made for this process. OSError if the kernel refuses it."""
    given = _Program(len(program) // 8, program)
    _require(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0), "seccomp")


# ---------------------------------------------------------------- limits and rights of the process


def drop_capabilities() -> None:
    """Give up the privileges of root, where the process has them. OSError if refused."""
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _require(_LIBC.capset(header, none), "capset")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    _require(_LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "pdeathsig")


def limit_resources(memory_bytes: int, seconds: float) -> None:
    """Limit address space and processor time; allow no files, core dumps, locked memory or message queues."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 16,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))


def _require(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
