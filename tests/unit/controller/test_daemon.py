"""Starting, stopping, and dying, as a process."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from overmesh.config import ControllerConfig
from overmesh.controller import daemon
from overmesh.controller.daemon import running
from overmesh.controller.serving import reachable
from overmesh.controller.store import open_store
from overmesh.errors import (
    ConfigError,
    OvermeshError,
    PermissionMissingError,
    PortInUseError,
    StateError,
    StoreBusyError,
    StoreUnavailableError,
)
from overmesh.proto import admin_pb2
from overmesh.token import JoinToken
from tests.etcd import free_port
from tests.unit.controller.lab import Client, Host, client, config


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


async def start(settings: ControllerConfig) -> None:
    async with running(settings):
        pass


async def refusal(settings: ControllerConfig, error: type[OvermeshError]) -> OvermeshError:
    with pytest.raises(error) as raised:
        await start(settings)
    return raised.value


# Refusing to start.


@pytest.mark.parametrize("which", ["join_port", "mesh_port"])
async def test_a_port_in_use_is_named_and_nothing_is_left_behind(
    tmp_path: Path, taken_port: int, which: str
) -> None:
    error = await refusal(config(tmp_path, **{which: taken_port}), PortInUseError)
    assert f"port {taken_port}/tcp is in use" in error.cause
    await start(config(tmp_path))


async def test_a_second_controller_on_the_same_store(tmp_path: Path) -> None:
    async with running(config(tmp_path)):
        error = await refusal(config(tmp_path, runtime_dir=tmp_path / "other"), StoreBusyError)
        assert error.fix
    await start(config(tmp_path))


async def test_a_second_controller_on_the_same_socket(tmp_path: Path) -> None:
    async with running(config(tmp_path)):
        error = await refusal(config(tmp_path, state_dir=tmp_path / "other"), PortInUseError)
        assert "controller.sock" in error.cause


async def test_a_stale_socket_is_replaced_and_only_root_may_use_the_new_one(tmp_path: Path) -> None:
    settings = config(tmp_path)
    settings.runtime_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(settings.socket))
    umask = os.umask(0)
    try:
        async with running(settings) as controller, client(settings, controller) as talking:
            await talking.token()
            mode = settings.socket.stat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
            assert stat.S_IMODE(settings.state_dir.stat().st_mode) == 0o700
    finally:
        assert os.umask(umask) == 0


async def test_the_root_key_is_gone(tmp_path: Path) -> None:
    await start(config(tmp_path))
    key = tmp_path / "state" / "root.key"
    kept = key.read_bytes()
    key.unlink()
    error = await refusal(config(tmp_path), StateError)
    assert str(key) in error.cause
    key.write_bytes(kept)
    await start(config(tmp_path))


async def test_the_store_of_another_mesh(tmp_path: Path) -> None:
    await start(config(tmp_path / "one"))
    await start(config(tmp_path / "two"))
    store = f"sqlite:{tmp_path / 'one' / 'state' / 'store.db'}"
    assert "of another mesh" in (await refusal(config(tmp_path / "two", store=store), StateError)).cause


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        ({"listen": "192.0.2.77"}, ConfigError, "192.0.2.77"),
        ({"listen": "nowhere.invalid"}, ConfigError, "nowhere.invalid"),
        ({"runtime_dir": Path("/tmp") / ("x" * 100)}, ConfigError, "too long"),
        ({"runtime_dir": Path("/proc/nowhere")}, PermissionMissingError, "/proc/nowhere"),
        ({"state_dir": Path("/proc/nowhere")}, PermissionMissingError, "/proc/nowhere"),
        ({"store": "oracle:x"}, ConfigError, "oracle"),
        ({"ranges": ("10.0.0.0/33",)}, OvermeshError, "10.0.0.0/33"),
        ({"join_port": 70000}, ConfigError, "70000"),
        ({"advertise": ("a.example:7443",)}, ConfigError, "a.example:7443"),
        ({"advertise": ("ü.example",)}, ConfigError, "ü.example"),
        ({"certificate_lifetime": 5}, ConfigError, "certificate_lifetime: 5 seconds"),
    ],
)
async def test_settings_that_can_not_be(
    tmp_path: Path, other: dict[str, object], error: type[OvermeshError], words: str
) -> None:
    assert words in (await refusal(config(tmp_path, **other), error)).cause


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"metrics": "7444"}, "metrics: '7444'"),
        ({"trace": "192.0.2.9:4318"}, "trace: '192.0.2.9:4318'"),
        ({"advertise": ("a.example:7443",)}, "advertise: 'a.example:7443'"),
        ({"certificate_lifetime": 5}, "certificate_lifetime"),
    ],
)
async def test_a_setting_that_can_not_be_is_found_before_anything_is_written(
    tmp_path: Path, other: dict[str, object], words: str
) -> None:
    settings = config(tmp_path, **other)
    assert words in (await refusal(settings, ConfigError)).cause
    store = open_store(settings.store_target)
    assert not (await store.range("/")).kvs
    await store.close()


# Where it listens.


async def test_both_families_by_default(tmp_path: Path) -> None:
    async with running(config(tmp_path, listen="")) as controller:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as probe:
                probe.connect((address, controller.listening.join_port))


async def test_a_host_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "AF_INET6", 9999)
    async with running(config(tmp_path, listen="")) as controller:
        assert controller.listening.host == "0.0.0.0"


async def test_members_are_told_where_when_nobody_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "own_addresses", lambda overlays: ["192.0.2.1", "2001:db8::1"])
    settings = config(tmp_path, advertise=())
    async with running(settings) as controller, client(settings, controller) as talking:
        token = await talking.admin.CreateToken(admin_pb2.CreateTokenRequest())
        assert token.join_line.startswith(f"meshctl join 192.0.2.1:{talking.join_port} --token om2.")
        reply = await talking.join.Join(Host("a").request(JoinToken.parse(token.secret_token)))
        port = controller.listening.mesh_port
        assert list(reply.controllers) == [f"192.0.2.1:{port}", f"[2001:db8::1]:{port}"]


def test_own_addresses_leave_out_what_no_one_can_reach() -> None:
    addresses = reachable.own_addresses([])
    assert not any(address.is_loopback or address.is_link_local for address in addresses)
    assert len(set(addresses)) == len(addresses)


async def test_reflection_on_the_admin_socket(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with running(settings), grpc.aio.insecure_channel(f"unix:{settings.socket}") as channel:
        reflecting: Any = reflection_pb2_grpc
        call = reflecting.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = (await call.read()).list_services_response.service
        assert "overmesh.admin.v1.Admin" in {service.name for service in services}
        call.cancel()


# Stopping and dying.


async def test_a_lost_store_ends_the_controller(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as controller:
        await controller.mirror._store.close()
        with pytest.raises(StoreUnavailableError):
            async with asyncio.timeout(5):
                await controller.until(asyncio.Event())


_RUN = """
import sys
from pathlib import Path
from overmesh.config import ControllerConfig
from overmesh.controller.daemon import run
path = Path(sys.argv[1])
run(ControllerConfig(state_dir=path / "state", runtime_dir=path / "run", listen="127.0.0.1",
    join_port=int(sys.argv[2]), mesh_port=int(sys.argv[3]), advertise=("127.0.0.1",)))
"""


@contextmanager
def process(settings: ControllerConfig, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a controller as a process of its own; killed at the end if it is still there."""
    args = [sys.executable, "-c", _RUN, str(path), str(settings.join_port), str(settings.mesh_port)]
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True) as running_process:
        try:
            yield running_process
        finally:
            running_process.kill()


@asynccontextmanager
async def talk(settings: ControllerConfig) -> AsyncIterator[Client]:
    """Talk to that process as soon as it answers."""
    root = settings.state_dir / "root.pem"
    async with asyncio.timeout(20):
        while not (root.exists() and settings.socket.exists()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        talking = Client(settings, root.read_bytes(), settings.join_port, settings.mesh_port)
        await talking.admin.ListTokens(admin_pb2.ListTokensRequest(), wait_for_ready=True)
    try:
        yield talking
    finally:
        await talking.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_well(tmp_path: Path, number: signal.Signals) -> None:
    settings = config(tmp_path, join_port=free_port(), mesh_port=free_port())
    with process(settings, tmp_path) as one:
        async with talk(settings) as talking:
            await talking.joined(Host("a"))
        one.send_signal(number)
        _, log = await asyncio.to_thread(one.communicate, timeout=10)
    assert one.returncode == 0
    assert "controller ready" in log
    assert "controller stops" in log
    assert "Traceback" not in log


async def test_a_sigkill_in_the_middle_of_joins_loses_none_that_was_answered(tmp_path: Path) -> None:
    settings = config(tmp_path, join_port=free_port(), mesh_port=free_port())
    hosts = [Host(f"n{number}") for number in range(200)]
    answered: dict[str, bytes] = {}

    async def join(talking: Client, token: JoinToken, host: Host) -> None:
        reply = await talking.join.Join(host.request(token))
        answered[host.id] = reply.node
        if len(answered) == 40:
            one.kill()

    with process(settings, tmp_path) as one:
        async with talk(settings) as talking:
            token = await talking.token()
            joins = (join(talking, token, host) for host in hosts)
            results = await asyncio.gather(*joins, return_exceptions=True)
    assert any(isinstance(result, grpc.aio.AioRpcError) for result in results)
    assert 40 <= len(answered) < 200

    settings = replace(settings, join_port=0, mesh_port=0)
    async with running(settings) as controller, client(settings, controller) as talking:
        held = controller.mirror.view("mesh").map.items
        assert {node_id: held.get(f"node/{node_id}") for node_id in answered} == answered
        await asyncio.gather(*(talking.join.Join(host.request(token)) for host in hosts))
        addresses = controller.mirror.held("addresses", "mesh")
        assert len(addresses) == 2 * len(hosts)
        assert len(controller.mirror.held("nodes", "mesh")) == len(hosts)


async def test_the_store_is_closed_in_the_end(tmp_path: Path) -> None:
    settings = config(tmp_path)
    await start(settings)
    store = open_store(settings.store_target)
    assert [kv.key for kv in (await store.range("/overmesh/v1/presence/")).kvs] == []
    await store.close()
