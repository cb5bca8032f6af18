"""Process 1 of a lab host, run by lab.py inside fresh namespaces; needs the standard library alone.

Gives the host its own /var/lib/overmesh, /run/overmesh, /etc/overmesh, machine id and name, without
a trace on the real machine: /etc, /var/lib and /run become tmpfs whose entries are bound from the
real ones. Then it says its process id as the lab sees it, reaps orphans, and ends (and with it, by the
kernel's hand, everything in its PID namespace) when stdin closes: so nothing outlives the lab, however
that dies.
"""

import ctypes
import os
import signal
import socket
import stat
import sys
import uuid
from pathlib import Path

_MS_BIND, _MS_REC = 0x1000, 0x4000
# A lab host has no systemd, whatever runs the real machine.
_HIDDEN = {"overmesh", "systemd", "machine-id"}
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    pid = Path("/proc/self").readlink()  # in the lab's PID namespace: /proc is still the real one
    name = sys.argv[1]
    socket.sethostname(name)
    mount("proc", "/proc", "proc")
    for directory in ("/etc", "/var/lib", "/run"):
        shadow(Path(directory))
        (Path(directory) / "overmesh").mkdir(mode=0o700)
    Path("/etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    signal.signal(signal.SIGCHLD, reap)
    print(pid, flush=True)
    sys.stdin.read()


def shadow(directory: Path) -> None:
    """Replace a directory by a tmpfs that shows the same entries, so that new ones are this host's alone."""
    entries = [entry for entry in directory.iterdir() if entry.name not in _HIDDEN]
    links = {entry.name: entry.readlink() for entry in entries if entry.is_symlink()}
    # Held open, because the tmpfs is about to cover them.
    held = {entry.name: os.open(entry, os.O_PATH) for entry in entries if entry.name not in links}
    mount("tmpfs", str(directory), "tmpfs")
    for name, target in links.items():
        (directory / name).symlink_to(target)
    for name, fd in held.items():
        make = Path.mkdir if stat.S_ISDIR(os.fstat(fd).st_mode) else Path.touch
        make(directory / name)
        mount(f"/proc/self/fd/{fd}", str(directory / name), "", _MS_BIND | _MS_REC)
        os.close(fd)


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {target}: {os.strerror(error)}")


def reap(*_: object) -> None:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
