"""An etcd that asks for certificates, and lets each user see a prefix only."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

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
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from overmesh.controller.store import open_store
from overmesh.controller.store.base import Put, Store
from overmesh.controller.store.history import trim_history
from overmesh.errors import StoreUnavailableError
from tests.etcd import Member, cluster


class Authority:
    """A CA that writes certificates into a directory: NAME.pem and NAME.key."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name, self._key = name, generate_private_key(SECP256R1())
        self.path = directory / f"{name}.pem"
        self._write(name, self._key, self._key, ca=True)

    def issue(self, name: str) -> None:
        self._write(name, generate_private_key(SECP256R1()), self._key, ca=False)

    def _write(self, name: str, key: EllipticCurvePrivateKey, signer: Any, ca: bool) -> None:
        now = datetime.now(UTC)
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
    assert "certificate is not signed by the given CA" in error.cause


async def test_no_certificate_of_ours(member: Member, tmp_path: Path) -> None:
    error = await refusal(store_as(member, tmp_path, ""))
    assert "can't be reached" in error.cause
    assert "cert=FILE" in error.fix


async def test_no_tls_where_it_is_wanted(member: Member, tmp_path: Path) -> None:
    error = await refusal(open_store(f"etcd://{member.endpoint}/mesh"))
    assert "TLS" in error.fix
