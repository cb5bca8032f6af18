"""An etcd that asks for certificates, and lets each user see a prefix only."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import grpc.aio
import pytest
from aetcd import rpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from overmesh.controller.store import open_store
from overmesh.controller.store.base import KeyValue, Put, Store
from overmesh.controller.store.etcd.tls import Renewable
from overmesh.controller.store.history import trim_history
from overmesh.errors import ConfigError, StoreUnavailableError
from tests.etcd import Member, cluster


class Authority:
    """A CA that writes certificates into a directory: NAME.pem and NAME.key."""

    def __init__(self, directory: Path, name: str, key: EllipticCurvePrivateKey | None = None) -> None:
        self._directory = directory
        self._name, self._key = name, key or generate_private_key(SECP256R1())
        self.path = directory / f"{name}.pem"
        if key is None:
            self._write(name, self._key, self._key, ca=True)

    @classmethod
    def held(cls, directory: Path, name: str) -> Self:
        """Return one that was made before."""
        key = load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
        assert isinstance(key, EllipticCurvePrivateKey)
        return cls(directory, name, key)

    def issue(self, name: str, later: timedelta = timedelta()) -> None:
        self._write(name, generate_private_key(SECP256R1()), self._key, ca=False, later=later)

    def _write(
        self,
        name: str,
        key: EllipticCurvePrivateKey,
        signer: Any,
        *,
        ca: bool,
        later: timedelta = timedelta(),
    ) -> None:
        now = datetime.now(UTC) + later
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
            .sign(signer, SHA256())
        )
        (self._directory / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self._directory / f"{name}.key").write_bytes(pem)


@contextmanager
def guarded(directory: Path) -> Iterator[Member]:
    authority = Authority(directory, "ca")
    Authority(directory, "other-ca")
    for name in ("server", "root", "mesh", "stranger"):
        authority.issue(name)
    options = (
        f"--cert-file={directory}/server.pem",
        f"--key-file={directory}/server.key",
        f"--trusted-ca-file={authority.path}",
        "--client-cert-auth",
        "--bcrypt-cost=4",
    )
    with cluster(directory, options=options, scheme="https") as [member]:
        yield member


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    with guarded(tmp_path) as member:
        yield member


def store_as(member: Member, directory: Path, name: str, ca: str = "ca") -> Store:
    files = f"?ca={directory}/{ca}.pem" + (
        f"&cert={directory}/{name}.pem&key={directory}/{name}.key" if name else ""
    )
    return open_store(f"etcd://{member.endpoint}/mesh{files}")


async def let_mesh_have_its_prefix(member: Member, directory: Path) -> None:
    """Turn authentication on: `mesh` may use /mesh/, `stranger` is known and may use nothing."""
    read = [(directory / name).read_bytes() for name in ("ca.pem", "root.key", "root.pem")]
    async with grpc.aio.secure_channel(member.endpoint, grpc.ssl_channel_credentials(*read)) as channel:
        auth = rpc.AuthStub(channel)
        for name in ("root", "mesh", "stranger"):
            await auth.UserAdd(rpc.AuthUserAddRequest(name=name, password="unused"))
        for name in ("root", "mesh"):
            await auth.RoleAdd(rpc.AuthRoleAddRequest(name=name))
            await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=name))
        permission = rpc.Permission(permType=rpc.Permission.READWRITE, key=b"/mesh/", range_end=b"/mesh0")
        await auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name="mesh", perm=permission))
        await auth.AuthEnable(rpc.rpc_pb2.AuthEnableRequest())


async def refusal(store: Store) -> StoreUnavailableError:
    with pytest.raises(StoreUnavailableError) as raised:
        await store.get("/overmesh/v1/root")
    await store.close()
    assert raised.value.fix
    assert "\n" not in raised.value.cause
    return raised.value


async def test_a_user_with_its_prefix(member: Member, tmp_path: Path) -> None:
    await let_mesh_have_its_prefix(member, tmp_path)
    store = store_as(member, tmp_path, "mesh")
    lease = await store.grant(10)
    watch = store.watch("/overmesh/", 0)
    result = await store.txn((), [Put("/overmesh/v1/root", b"pin", lease)])
    assert (await anext(watch)).revision == result.revision
    await trim_history(store, keep=0)
    await store.keepalive(lease)
    await store.revoke(lease)
    assert (await anext(watch)).events[0].kv is None
    await store.close()


async def test_a_user_without_permission(member: Member, tmp_path: Path) -> None:
    await let_mesh_have_its_prefix(member, tmp_path)
    store = store_as(member, tmp_path, "stranger")
    for watch in (store.watch("/overmesh/", 0), store.watch("/overmesh/", 1)):
        with pytest.raises(StoreUnavailableError, match="permission denied"):
            await anext(watch)
    assert "refuses: permission denied" in (await refusal(store)).cause


async def test_the_wrong_ca(member: Member, tmp_path: Path) -> None:
    error = await refusal(store_as(member, tmp_path, "mesh", ca="other-ca"))
    assert "a certificate that is not signed by the given CA" in error.cause


async def test_no_certificate_of_ours(member: Member, tmp_path: Path) -> None:
    Authority(tmp_path, "third").issue("foreign")
    for name in ("", "foreign"):
        error = await refusal(store_as(member, tmp_path, name))
        assert (
            error.cause
            == f"etcd://{member.endpoint}/mesh wants a certificate of ours, signed by its --trusted-ca-file"
        )
        assert "cert=FILE" in error.fix


async def test_no_tls_where_it_is_wanted(member: Member, tmp_path: Path) -> None:
    error = await refusal(open_store(f"etcd://{member.endpoint}/mesh"))
    assert "TLS" in error.fix


async def test_tls_where_there_is_none(tmp_path: Path) -> None:
    Authority(tmp_path, "ca").issue("mesh")
    with cluster(tmp_path) as [member]:
        error = await refusal(store_as(member, tmp_path, "mesh"))
    assert error.cause == f"etcd://{member.endpoint}/mesh speaks no TLS"
    assert "leave ca=" in error.fix


async def test_a_certificate_that_was_renewed_is_shown_when_the_next_connection_is_made(
    member: Member, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    authority = Authority.held(tmp_path, "ca")
    authority.issue("mesh", timedelta(days=-1, seconds=2))
    store = store_as(member, tmp_path, "mesh")
    watch = store.watch("/overmesh/", 0)
    await store.txn((), [Put("/overmesh/v1/root", b"pin")])
    await asyncio.sleep(2)
    await store.txn((), [Put("/overmesh/v1/root", b"a connection that is there stays")])
    member.kill()
    member.start()
    await asyncio.to_thread(member.wait_ready)
    with pytest.raises(StoreUnavailableError, match=r"mesh\.pem of the store is valid from .* UTC only"):
        await store.get("/overmesh/v1/root")
    (tmp_path / "mesh.pem").write_bytes(b"half of it")
    with pytest.raises(StoreUnavailableError):
        await store.get("/overmesh/v1/root")
    authority.issue("mesh")
    async with asyncio.timeout(10):
        assert (await eventually(store)).value == b"a connection that is there stays"
        assert [(await anext(watch)).events[0].key for _ in range(2)] == ["/overmesh/v1/root"] * 2
        result = await store.txn((), [Put("/overmesh/v1/root", b"")])
        assert (await anext(watch)).revision == result.revision
    assert caplog.text.count("etcd is shown a renewed certificate") == 1
    await store.close()


async def eventually(store: Store) -> KeyValue:
    """Return a key once the store answers."""
    while True:
        with suppress(StoreUnavailableError):
            found = await store.get("/overmesh/v1/root")
            assert found
            return found
        await asyncio.sleep(0.05)


def test_the_user_sees_one_line(member: Member, tmp_path: Path) -> None:
    store = f"etcd://{member.endpoint}/mesh?ca={tmp_path}/ca.pem"
    command = [
        sys.executable,
        "-m",
        "overmesh.cli.main",
        "store",
        "export",
        f"{tmp_path}/backup",
        "--store",
        store,
    ]
    quiet = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=20, check=False)
    assert done.returncode == 1
    assert "wants a certificate of ours" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


LOCKED = BestAvailableEncryption(b"secret")
GARBAGE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def ours(tmp_path: Path) -> dict[str, Path]:
    """Return files as they should be."""
    Authority(tmp_path, "ca").issue("mesh")
    return {"ca": tmp_path / "ca.pem", "cert": tmp_path / "mesh.pem", "key": tmp_path / "mesh.key"}


def test_files_as_they_should_be(ours: dict[str, Path]) -> None:
    assert Renewable(ours).credentials
    assert Renewable({"ca": ours["ca"]}).credentials


@pytest.mark.parametrize("option", ["ca", "cert", "key"])
@pytest.mark.parametrize(
    "content", [None, b"", b"nothing", GARBAGE, b"\xff\0", b"-----BEGIN PRIVATE KEY-----\n"]
)
def test_files_that_hold_no_such_thing(ours: dict[str, Path], option: str, content: bytes | None) -> None:
    if content is None:
        ours[option].unlink()
    else:
        ours[option].write_bytes(content)
    with pytest.raises(
        ConfigError, match=f"^{option}={ours[option]} of the store (can't be read: No such|holds no)"
    ):
        Renewable(ours)


def test_a_key_of_another_certificate(ours: dict[str, Path]) -> None:
    ours["key"].write_bytes((ours["ca"].with_suffix(".key")).read_bytes())
    with pytest.raises(
        ConfigError, match=f"key={ours['key']} of the store is not the key of cert={ours['cert']}"
    ):
        Renewable(ours)


def test_a_key_with_a_password(ours: dict[str, Path]) -> None:
    key = generate_private_key(SECP256R1())
    ours["key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, LOCKED))
    with pytest.raises(ConfigError, match="is locked with a password"):
        Renewable(ours)


@pytest.mark.parametrize("days", [-2, 2])
def test_a_certificate_that_is_not_valid_now(tmp_path: Path, ours: dict[str, Path], days: int) -> None:
    authority = Authority(tmp_path, "ca")
    authority.issue("mesh", timedelta(days=days))
    with pytest.raises(
        StoreUnavailableError, match=f"^cert={ours['cert']} of the store is valid from .* UTC only"
    ):
        Renewable(ours)
