"""Take from this process everything that reading one open file does not need.

Knows how to stack what the machine offers: resource limits, a network namespace without a network, a
seccomp filter over system calls, and a Python audit hook. Does not know what will be read. Used only by
the converter child, which imports it by file, so it imports nothing of ours and nothing outside the
standard library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

__all__ = ["close_doors", "limit_resources"]

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_THREAD = 0x00010000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2


def limit_resources(*, memory_bytes: int, cpu_s: int, file_bytes: int) -> None:
    """Bound address space, processor time, size of any written file, open files, processes, core dumps."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for which, wanted in limits.items():
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (value, value))


def close_doors() -> tuple[str, ...]:
    """Give up network, new processes and every write outside already open files; say which layers hold.

    Returns:
        the layers in force, of "netns", "seccomp", "audit". "audit" is always there; it alone stops Python
        code but not a native exploit.
    """
    layers: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWNET) == 0:
            layers.append("netns")
        if _filter_system_calls(libc):
            layers.append("seccomp")
    sys.addaudithook(_refuse)
    layers.append("audit")
    return tuple(layers)


# --- Python's own events -----------------------------------------------------------------------------------

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED_EVENTS = frozenset(
    "os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn os.startfile pty.spawn subprocess.Popen "
    "os.remove os.rename os.link os.symlink os.mkdir os.rmdir os.truncate os.chmod os.chown os.utime "
    "os.setxattr os.removexattr os.kill os.killpg shutil.copyfile "
    "shutil.rmtree shutil.move shutil.make_archive shutil.unpack_archive sqlite3.connect signal.pthread_kill "
    "resource.setrlimit resource.prlimit tempfile.mkstemp tempfile.mkdtemp webbrowser.open".split()
)
_REFUSED_PREFIXES = (
    "socket.",
    "ftplib.",
    "http.",
    "imaplib.",
    "smtplib.",
    "telnetlib.",
    "urllib.",
    "poplib.",
)


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "open":
        path, flags = args[0], args[2]
        if isinstance(path, int) or not isinstance(flags, int) or not flags & _WRITE_FLAGS:
            return
        raise PermissionError(errno.EPERM, "converter child: refused to open a file for writing")
    if event in _REFUSED_EVENTS or event.startswith(_REFUSED_PREFIXES):
        raise PermissionError(errno.EPERM, f"converter child: refused {event}")


# --- the kernel's ------------------------------------------------------------------------------------------

# A deny list, as torch's own import needs a wide and changing set of calls. Numbers: Linux
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_X86_64: dict[str, int] = {
    "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
    "socketpair": 53, "accept4": 288, "sendmmsg": 307,
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "ptrace": 101,
    "rt_sigqueueinfo": 129, "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438,
    "process_vm_readv": 310, "process_vm_writev": 311, "prlimit64_set": 160,
    "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "mknod": 133, "utimes": 235,
    "mkdirat": 258, "mknodat": 259, "fchownat": 260, "futimesat": 261, "unlinkat": 263, "renameat": 264,
    "linkat": 265, "symlinkat": 266, "fchmodat": 268, "utimensat": 280, "renameat2": 316, "fchmodat2": 452,
    "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
    "chroot": 161, "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
    "open_by_handle_at": 304, "add_key": 248, "request_key": 249, "keyctl": 250,
    "init_module": 175, "finit_module": 313, "kexec_load": 246, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
}  # fmt: skip
_AARCH64: dict[str, int] = {
    "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203,
    "sendto": 206, "sendmsg": 211, "accept4": 242, "sendmmsg": 269,
    "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "ptrace": 117, "rt_sigqueueinfo": 138,
    "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438, "process_vm_readv": 270,
    "process_vm_writev": 271, "setrlimit": 164,
    "truncate": 45, "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37,
    "renameat": 38, "fchmodat": 53, "fchownat": 54, "utimensat": 88, "renameat2": 276, "fchmodat2": 452,
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14,
    "chroot": 51, "mount": 40, "umount2": 39, "pivot_root": 41, "unshare": 97, "setns": 268,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
    "open_by_handle_at": 265, "add_key": 217, "request_key": 218, "keyctl": 219,
    "init_module": 105, "finit_module": 273, "kexec_load": 104, "bpf": 280, "perf_event_open": 241,
    "userfaultfd": 282, "io_uring_setup": 425, "io_uring_enter": 426,
}  # fmt: skip
_CLONE3, _OPENAT2 = 435, 437  # arguments live in memory the filter cannot see: answer "no such call"
_ARCHES = {
    # machine: (audit arch, refused calls, open or -1, openat, clone)
    "x86_64": (0xC000003E, _X86_64, 2, 257, 56),
    "aarch64": (0xC00000B7, _AARCH64, -1, 56, 220),
}

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


class _FilterProgram(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _filter_system_calls(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in _ARCHES or sys.byteorder != "little":
        return False
    code = _filter_code(*_ARCHES[machine])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    status: int = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    return status == 0


def _filter_code(arch: int, refused: dict[str, int], open_nr: int, openat_nr: int, clone_nr: int) -> bytes:
    """Classic BPF over `struct seccomp_data`: nr at byte 0, arch at 4, arguments of eight bytes from 16."""

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, k)

    eperm = op(_RETURN, _ERRNO | errno.EPERM)
    enosys = op(_RETURN, _ERRNO | errno.ENOSYS)
    code = [op(_LOAD, 4), op(_JUMP_EQ, arch, 1, 0), op(_RETURN, _KILL), op(_LOAD, 0)]
    if open_nr >= 0:  # x86-64 only: the x32 numbering must not be a way round the list
        code += [op(_JUMP_GE, 0x40000000, 0, 1), op(_RETURN, _KILL)]
    for number in refused.values():
        code += [op(_JUMP_EQ, number, 0, 1), eperm]
    for number in (_CLONE3, _OPENAT2):
        code += [op(_JUMP_EQ, number, 0, 1), enosys]
    for number, argument in ((open_nr, 1), (openat_nr, 2)):
        if number >= 0:
            flags = op(_LOAD, 16 + 8 * argument)
            code += [op(_JUMP_EQ, number, 0, 4), flags, op(_JUMP_SET, _WRITE_FLAGS, 0, 1), eperm]
            code += [op(_RETURN, _ALLOW)]
    # A thread may be made, a process may not.
    code += [op(_JUMP_EQ, clone_nr, 0, 3), op(_LOAD, 16), op(_JUMP_SET, _CLONE_THREAD, 1, 0), eperm]
    return b"".join([*code, op(_RETURN, _ALLOW)])
