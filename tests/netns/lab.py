"""Hosts made of namespaces, on one Ethernet segment, that run the commands a user types.

    with Lab("a", "b") as lab:
        lab["a"].run("ping -c 1 192.0.2.2")

A host is a network, mount, PID and UTS namespace whose process 1 is init.py: it has its own
/etc/overmesh, /var/lib/overmesh and /run/overmesh. The segment is a bridge in a network namespace of
its own, so nothing is ever made in the machine's: labs run side by side and need no names of their own.
All of it ends with the lab process, however that ends. Works as root, and for other users inside a user
namespace where the system allows those.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
FASTPATH_DIR = ROOT / "fastpath" / "target" / "release"
_INIT = Path(__file__).with_name("init.py")
_TOOLS = ("ip", "nsenter", "ping", "unshare")

Command = str | Sequence[str]


def missing() -> str:
    """Return why this machine can't run a lab; empty if it can."""
    absent = [tool for tool in _TOOLS if not shutil.which(tool)]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2, iputils-ping, util-linux)"
    tried = subprocess.run(
        [*_outermost(), "sh", "-c", "exec 3<>/dev/net/tun"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"needs root or user namespaces, and /dev/net/tun: {tried.stderr.strip()}"
    return ""


_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child")


def _outermost() -> list[str]:
    """Return how to enter namespaces from where the lab is started."""
    return [*_UNSHARE, *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


class CommandError(Exception):
    """A command in a host failed, or took too long."""


class Process:
    """A command that runs in the background of a host."""

    def __init__(self, host: "Host", popen: "subprocess.Popen[bytes]", pid: int, name: Path) -> None:
        self._host = host
        self._popen = popen
        self.name = name
        self.pid = pid  # as the host sees it

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal."""
        self._host.kill(self.pid, number)
        if number is signal.SIGCONT:
            self._popen.send_signal(number)  # nsenter stops with what it runs

    def wait(self, timeout: float = 20) -> int:
        """Return the exit code, once the process has ended by itself or after a signal."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CommandError(
                f"{self._host.name}: {self.name.stem} still runs:\n{self.output}{self.log}"
            ) from None

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.name.with_suffix(".out").read_text(errors="replace")

    @property
    def log(self) -> str:
        """What it has said on stderr so far."""
        return self.name.with_suffix(".err").read_text(errors="replace")


class Namespaces:
    """A set of namespaces and the process that holds them."""

    def __init__(self, name: str, unshare: Sequence[str]) -> None:
        self.name = name
        self._init = subprocess.Popen(
            [*unshare, sys.executable, str(_INIT), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the lab: it ends its hosts in order.
            start_new_session=True,
            text=True,
        )
        assert self._init.stdout is not None
        self.pid = int(self._init.stdout.readline() or 0)
        if not self.pid:
            raise CommandError(f"{name}: the namespaces could not be made")

    def enter(self, *kinds: str) -> list[str]:
        """Return how to run a command in these namespaces."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.pid), *user, *(f"--{kind}" for kind in kinds)]

    def end(self) -> None:
        """End every process in the namespaces; the kernel then removes what was in them."""
        self._init.communicate(timeout=10)  # closes its stdin


class Host(Namespaces):
    """One machine of the lab."""

    def __init__(self, name: str, directory: Path, unshare: Sequence[str]) -> None:
        super().__init__(name, unshare)
        self._directory = directory
        self._started: list[Process] = []
        self._environ = _environ(directory)

    @property
    def shell(self) -> list[str]:
        """How to run a command on this host."""
        return self.enter("net", "mount", "uts", "pid")

    def script(self) -> str:
        """Return a shell script that runs its arguments on this host, or else a shell."""
        environ = " ".join(f"{key}={shlex.quote(self._environ[key])}" for key in ("PATH", "PYTHONPATH"))
        enter = f"{shlex.join(self.shell)} env {environ}"
        return f'#!/bin/sh\n[ $# -gt 0 ] || set -- sh\nexec {enter} "$@"\n'

    def run(
        self,
        command: Command,
        *,
        timeout: float = 30,
        check: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end.

        Raises:
            CommandError: non-zero exit code (unless `check` is false), or still running at the timeout.

        """
        argv = _argv(command)
        try:
            done = subprocess.run(
                [*self.shell, *argv],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                cwd=ROOT,
                env={**self._environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace") + (late.stderr or b"").decode(
                errors="replace"
            )
            raise CommandError(
                f"{self.name}$ {shlex.join(argv)}: still runs after {timeout} s\n{said}"
            ) from None
        if check and done.returncode:
            raise CommandError(
                f"{self.name}$ {shlex.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, command: Command, *, environ: Mapping[str, str] | None = None) -> Process:
        """Run a command in the background."""
        argv = _argv(command)
        name = self._directory / f"{self.name}-{len(self._started)}-{Path(argv[0]).name}"
        # The shell tells its process id inside the host (through the pipe that is its stdin), then
        # becomes the command.
        reading, writing = os.pipe()
        out, err = (name.with_suffix(kind).open("wb") for kind in (".out", ".err"))
        with out, err, os.fdopen(reading) as told:
            popen = subprocess.Popen(
                [*self.shell, "sh", "-c", 'echo $$ >&0; exec "$@" </dev/null', "sh", *argv],
                stdin=writing,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**self._environ, **(environ or {})},
                start_new_session=True,
            )
            os.close(writing)
            self._started.append(Process(self, popen, int(told.readline()), name))
        return self._started[-1]

    def end(self) -> None:
        """End every process of the host."""
        super().end()
        for process in self._started:
            process.wait()

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process of this host."""
        self.run(["kill", f"-{number.value}", str(pid)])

    def read(self, path: str) -> str:
        """Return a file of this host."""
        return self.run(["cat", path]).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file of this host."""
        self.run(["sh", "-c", 'printf %s "$2" > "$1"', "sh", path, text])

    def logs(self, lines: int = 30) -> str:
        """Return the last lines of everything that ran in the background, and of the fastpath."""
        parts = []
        for process in self._started:
            for file in (process.name.with_suffix(".out"), process.name.with_suffix(".err")):
                tail = file.read_text(errors="replace").splitlines()[-lines:]
                parts += ["\n".join((f"--- {file.name}", *tail))] if tail else []
        fastpath = self.run(["tail", "-n", str(lines), "/var/lib/overmesh/agent/fastpath.log"], check=False)
        if fastpath.returncode == 0:
            parts.append(f"--- {self.name}: fastpath.log\n{fastpath.stdout}")
        return "\n".join(parts)


class Lab:
    """Hosts by name, each with an interface eth0 on one segment: 192.0.2.N/24 and 2001:db8::N/64."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="overmesh-lab-"))
        _write_meshctl(self.directory)
        try:
            self._segment = Namespaces("segment", _outermost())
            self._on_segment("ip link add segment type bridge")
            self._on_segment("ip link set segment up")
            for name in self.names:
                self.add(name)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def add(self, name: str) -> Host:
        """Make a further host and plug it in."""
        host = Host(name, self.directory, [*self._segment.enter(), *_UNSHARE])
        self._hosts[name] = host
        number = len(self._hosts)
        self._on_segment(f"ip link add name {name} type veth peer name eth0 netns {host.pid}")
        self._on_segment(f"ip link set dev {name} master segment up")
        for command in (
            "ip link set lo up",
            f"ip addr add 192.0.2.{number}/24 dev eth0",
            f"ip addr add 2001:db8::{number}/64 dev eth0 nodad",
            "ip link set eth0 up",
        ):
            host.run(command)
        return host

    def unplug(self, name: str) -> None:
        """Pull a host's cable."""
        self._on_segment(f"ip link set dev {name} down")

    def plug(self, name: str) -> None:
        """Put a host's cable back."""
        self._on_segment(f"ip link set dev {name} up")

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(host.logs() for host in self)

    def end(self) -> None:
        """End all hosts and delete all files."""
        for host in self:
            host.end()
        if hasattr(self, "_segment"):
            self._segment.end()
        shutil.rmtree(self.directory)

    def _on_segment(self, command: str) -> None:
        subprocess.run([*self._segment.enter("net"), *shlex.split(command)], check=True, timeout=10)


def until(holds: Callable[[], object], what: str, timeout: float = 30) -> float:
    """Wait until something holds and return how many seconds that took.

    Raises:
        CommandError: it does not in time; `what` names it.

    """
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > timeout:
            raise CommandError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - start


def _argv(command: Command) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


def _environ(directory: Path) -> dict[str, str]:
    programs = (directory, Path(sys.executable).parent, FASTPATH_DIR)
    path = os.pathsep.join((*map(str, programs), os.environ["PATH"]))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OVERMESH_")}
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT)}


def _write_meshctl(directory: Path) -> None:
    """Put a meshctl in the hosts' PATH that runs this tree."""
    script = directory / "meshctl"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m overmesh.cli.main "$@"\n')
    script.chmod(0o755)
