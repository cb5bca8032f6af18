"""The fastpath process: found, started or adopted, watched, talked to.

It runs in a session of its own and outlives the agent: a new agent adopts the one that it finds on
the socket. Its Events stream is open for as long as it lives; the end of the stream means that it
died, and then another one is started at once.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from overmesh import rpc
from overmesh.config import AgentConfig
from overmesh.errors import FastpathError
from overmesh.model import FastpathState
from overmesh.proto import fastpath_pb2, fastpath_pb2_grpc
from overmesh.proto.codec import apply_request, change_request

BINARY = "overmesh-fastpath"
CALL_TIMEOUT = 5.0
START_TIMEOUT = 5.0
GONE_TIMEOUT = 0.5

# A fastpath that dies young is started again after a delay that doubles; one that lived, at once.
YOUNG = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0

LOG_LIMIT = 8 << 20

log = logging.getLogger("overmesh.agent.fastpath")


class Fastpath:
    """The fastpath of this host.

    Args:
        config: where its socket and binary are.
        log_file: takes what it writes.
        changed: called when it came up, went away, or lost a device.

    """

    def __init__(self, config: AgentConfig, log_file: Path, changed: Callable[[], None]) -> None:
        self._config = config
        self._log_file = log_file
        self._changed = changed
        self._stub: Any = None
        self._given: tuple[FastpathState, bytes] | None = None
        self._wanted = True
        self._pid = 0
        self._child = 0
        self._log_start = 0
        self.restarts = 0
        self.error = ""

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._stub is not None

    # Watched.

    async def run(self) -> None:
        """Keep a fastpath running until cancelled, when the one that runs goes on, or shut down."""
        delay = 0.0
        while self._wanted:
            await asyncio.sleep(delay)
            began = time.monotonic()
            try:
                await self._one_life()
            except FastpathError as error:
                self.error = error.cause
            if not self._wanted:
                return
            log.warning("fastpath is not running", extra={"reason": self.error})
            self._changed()
            young = time.monotonic() - began < YOUNG
            delay = min(max(2 * delay, FIRST_DELAY), LONGEST_DELAY) if young and self.restarts else 0.0
            self.restarts += 1

    async def _one_life(self) -> None:
        """Find or start the process, then follow its events until it dies.

        What a process does without is settled when it starts: one that was found with other offloads ends.
        """
        started = not answers(self._config.fastpath_socket)
        if started:
            await self._start()
        async with self._connected():
            stats = await self.itself()
            self._pid = stats.pid
            outdated = not started and _unwanted(stats) != set(self._config.no_offload)
            if outdated:
                await self._call("Shutdown", fastpath_pb2.ShutdownRequest())
            else:
                verb = "started" if started else "adopted"
                log.info(
                    "fastpath %s",
                    verb,
                    extra={"pid": stats.pid, "version": stats.version, "backend": stats.backend},
                )
                self._changed()
                await self._follow()
        await _gone(self._pid)
        why = "for another no_offload" if outdated else self._ended() or "it closed its socket"
        self.error = f"it ended ({why})"

    async def _start(self) -> None:
        binary = find_binary(self._config.fastpath)
        self._ended()
        try:
            self._config.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._child = self._spawn(binary)
        except OSError as error:
            raise FastpathError(f"{binary} can't be started: {error.strerror}") from None
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(self._config.fastpath_socket):
            ended = self._ended()
            if ended:
                raise FastpathError(f"{binary}: {ended}{self._last_words()}", f"see {self._log_file}")
            if time.monotonic() > deadline:
                raise FastpathError(
                    f"{binary} does not answer on {self._config.fastpath_socket}", f"see {self._log_file}"
                )
            await asyncio.sleep(0.01)

    def _spawn(self, binary: Path) -> int:
        # Not subprocess: its objects end the child with the parent, or complain that they did not.
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_LIMIT:
            self._log_file.replace(self._log_file.with_suffix(".log.old"))
        self._log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawn(
            binary,
            [
                binary.name,
                "--socket",
                str(self._config.fastpath_socket.absolute()),
                "--log-format",
                self._config.log_format,
                *(["--no-offload", ",".join(unwanted)] if (unwanted := self._config.no_offload) else []),
            ],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log_file), mode, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        # A channel per process, with a pool of its own: an old one would wait out its backoff first.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            *rpc.TO_FASTPATH,
            *rpc.MESSAGE_LIMIT,
        ]
        target = f"unix:{self._config.fastpath_socket.absolute()}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            self._stub = fastpath_pb2_grpc.FastpathStub(channel)  # type: ignore[no-untyped-call]
            try:
                yield
            finally:
                self._stub = None
                self._given = None

    async def _follow(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            async for event in self._stub.Events(fastpath_pb2.EventsRequest()):
                match event.WhichOneof("body"):
                    case "device_lost":
                        lost = event.device_lost
                        log.error("device lost", extra={"device": lost.device, "reason": lost.reason})
                        self._given = None
                        self._changed()
                    case "peer_heard":
                        log.info("first packet from peer", extra={"id": event.peer_heard.id})

    def _ended(self) -> str:
        """Return how the process that this agent started has ended; empty while it lives."""
        if not self._child:
            return "not started by this agent"
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if not pid:
            return ""
        self._child = 0
        code = os.waitstatus_to_exitcode(status)
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def _last_words(self) -> str:
        """Return the last line that the process of this agent wrote."""
        with suppress(OSError), self._log_file.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read(LOG_LIMIT).decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return f": {said}" if said else ""
        return ""

    # Talked to. Everything here raises FastpathError when it does not answer or refuses.

    async def apply(self, state: FastpathState) -> None:
        """Make it go by a state: by what has changed about the last one, or by the whole."""
        reply = await self._change(state) or await self._call("Apply", apply_request(state))
        # One of an earlier version does not tell at once.
        self._given = state, reply.table_digest or (await self.itself()).table_digest

    async def _change(self, state: FastpathState) -> fastpath_pb2.ApplyReply | None:
        """Return its answer; None when only the whole will do."""
        if self._given is None:
            return None
        try:
            reply: fastpath_pb2.ApplyReply = await self._call("Change", change_request(*self._given, state))
        except FastpathError as error:
            # It has something else by now, or is of a version that knows no changes.
            log.info("fastpath gets everything anew", extra={"reason": error.cause})
            return None
        return reply

    async def applied(self) -> FastpathState | None:
        """Return what this agent gave it, None when it now has something else or is not running."""
        if not self.running or self._given is None:
            return None
        state, digest = self._given
        with suppress(FastpathError):
            if (await self.itself()).table_digest == digest:
                return state
        return None

    async def stats(self) -> fastpath_pb2.StatsReply:
        """Return its counters and what it knows of itself."""
        reply: fastpath_pb2.StatsReply = await self._call("Stats", fastpath_pb2.StatsRequest())
        return reply

    async def itself(self) -> fastpath_pb2.StatsReply:
        """Return what it knows of itself, without its peers."""
        request = fastpath_pb2.StatsRequest(without_peers=True)
        reply: fastpath_pb2.StatsReply = await self._call("Stats", request)
        return reply

    async def probe(self, peer: str, timeout: float) -> fastpath_pb2.ProbeReply:
        """Return how long the fastpath of a peer (node id) takes to answer; timeout in seconds."""
        request = fastpath_pb2.ProbeRequest(peer=peer, timeout_ms=int(timeout * 1000))
        reply: fastpath_pb2.ProbeReply = await self._call("Probe", request, timeout + CALL_TIMEOUT)
        return reply

    async def shutdown(self) -> None:
        """End it for good: no other one is started. Nothing happens when it is not running."""
        self._wanted = False
        if self.running:
            with suppress(FastpathError):  # it may be gone before its answer is here
                await self._call("Shutdown", fastpath_pb2.ShutdownRequest())
            await _gone(self._pid)

    async def _call(self, method: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
        if self._stub is None:
            raise FastpathError(
                f"the fastpath is not running: {self.error or 'it is being started'}", f"see {self._log_file}"
            )
        try:
            return await getattr(self._stub, method)(request, timeout=timeout)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this task: the channel was closed under the call, because the process died.
            raise FastpathError("the fastpath died while it was being asked") from None
        except grpc.aio.AioRpcError as error:
            raised = rpc.raised(error, "the fastpath")
            raise FastpathError(raised.cause, raised.fix) from None


def find_binary(configured: str) -> Path:
    """Return the fastpath's binary.

    Looked for where the configuration says; else beside this Python (where pip puts it), in PATH, and
    in the build tree of a checkout.

    Raises:
        FastpathError: there is none.

    """
    tree = Path(__file__).resolve().parent.parent / "fastpath" / "target" / "release" / BINARY
    found = shutil.which(BINARY)
    places = [Path(sys.executable).parent / BINARY, *([Path(found)] if found else []), tree]
    for path in [Path(configured)] if configured else places:
        if path.is_file() and os.access(path, os.X_OK):
            return path.absolute()
    if configured:
        raise FastpathError(f"{configured} is not a program", "correct `fastpath` in agent.toml")
    raise FastpathError(
        f"{BINARY} is not installed", "pip install 'overmesh[fastpath]', or `make setup` in a checkout"
    )


def _unwanted(stats: fastpath_pb2.StatsReply) -> set[str]:
    """Return the offloads that a fastpath was told to do without."""
    return {entry.name for entry in stats.offloads if entry.unwanted}


async def _gone(pid: int) -> None:
    """Wait until the kernel has taken a process apart: until then its socket may still seem to answer."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(GONE_TIMEOUT):
                await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def answers(path: Path) -> bool:
    """Tell whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
