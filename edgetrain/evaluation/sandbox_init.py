"""The inside of `sandbox.py`: run as a script by a bare interpreter, it confines itself and runs the program.

    this process: new namespaces ──fork──▶ process 1 of them: a root file system of its own; waits, and ends all
                                              └──fork──▶ the program: limits, no privilege

Imports the standard library only. namespaces(7), user_namespaces(7), pivot_root(2), mount_setattr(2), setrlimit(2).
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWIPC = 0x00020000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 0x2, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 0x1, 0x2
SYS_MOUNT_SETATTR = 442  # on every architecture
PR_SET_NO_NEW_PRIVS = 38
NOBODY = 65534
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/nix/store", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A function of the C library; raises OSError when it gives -1."""
    encoded = [os.fsencode(value) if isinstance(value, str) else value for value in arguments]
    if getattr(libc, name)(*encoded) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_namespaces() -> None:
    """This process alone in a user namespace, and its children in namespaces of their own.

    Root maps itself and nobody, whom the program will run as, because no limit on processes holds for root. Only a
    process outside may write such a map. Anybody else maps themselves to nobody.
    """
    uid, gid, inside = os.getuid(), os.getgid(), os.getpid()
    ready, go = os.pipe()
    helper = os.fork() if uid == 0 else None
    if helper == 0:
        os.close(go)
        os.read(ready, 1)  # until the other end is closed
        try:
            for name in ("uid_map", "gid_map"):
                write(f"/proc/{inside}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
        except OSError:
            os._exit(1)
        os._exit(0)
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC)
    os.close(go)
    os.close(ready)
    if helper is not None:
        if os.waitpid(helper, 0)[1]:
            raise OSError("the map of users cannot be written")
    else:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {uid} 1\n")
        write("/proc/self/gid_map", f"{NOBODY} {gid} 1\n")


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text.encode())  # at once: the kernel takes a map in one piece
    os.close(descriptor)


def enter_root(place: str, disk: int) -> None:
    """A root with the interpreter and the system's libraries, read only, and an empty folder /work in memory."""
    with open("program.py", "rb") as file:
        program = file.read()
    call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    call("mount", "tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in dict.fromkeys([*SYSTEM, sys.base_prefix, sys.base_exec_prefix]):
        show(path, place + path)
    work = place + "/work"
    os.mkdir(work)
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, place, AT_RECURSIVE, attributes, ctypes.c_size_t(size))
    call("mount", "tmpfs", work, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},mode=777,nr_inodes=10000")
    os.chdir(place)
    call("pivot_root", ".", ".")
    call("umount2", ".", MNT_DETACH)
    os.chdir("/work")
    with open("program.py", "wb") as file:
        file.write(program)


def show(path: str, target: str) -> None:
    """The same file or folder at `target`; a link stays one, and what is not there is left out."""
    if os.path.lexists(target) or not os.path.exists(path):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    call("mount", path, target, None, MS_BIND | MS_REC, None)


def become_program(settings: dict[str, Any]) -> NoReturn:
    """Limits, then a fresh interpreter, in which no privilege and no descriptor is left."""
    if settings["confined"]:
        os.setsid()  # a signal to its own group reaches us no more; without namespaces, ending our group ends it
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    cpu = math.ceil(settings["seconds"])
    for limit, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, settings["memory"]),
        (resource.RLIMIT_FSIZE, settings["disk"]),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_NOFILE, settings["files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(limit)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        # One more second of processor time lets the signal that says so come before the one that kills.
        hard = value + 1 if limit == resource.RLIMIT_CPU and most == resource.RLIM_INFINITY else value
        resource.setrlimit(limit, (value, hard))
    environment = {"HOME": os.getcwd(), "TMPDIR": os.getcwd(), "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", "-c", settings["driver"]], environment)


def wait(program: int, seconds: float) -> dict[str, Any]:
    """How the program ended, or that its time was up."""
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found == program:
            how = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}
            return how | {"seconds": elapsed}
        if not found:
            time.sleep(0.005)
    os.kill(program, signal.SIGKILL)
    return {"timed_out": True, "seconds": elapsed}


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.set_inheritable(settings["status"], False)
    try:
        if settings["confined"]:
            enter_namespaces()
            first = os.fork()
            if first:
                os.close(settings["status"])
                os.waitpid(first, 0)
                return
            enter_root(os.getcwd(), settings["disk"])
    except (OSError, AttributeError) as error:  # AttributeError: a C library without these functions
        os.write(settings["status"], json.dumps({"refused": getattr(error, "strerror", None) or str(error)}).encode())
        return
    program = os.fork()
    if not program:
        become_program(settings)
    report = wait(program, settings["seconds"])
    os.write(settings["status"], json.dumps(report).encode())
    # Ending as process 1 of its namespace, this ends every other process in it.


if __name__ == "__main__":
    main()
