import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from overmesh import rpc
from overmesh.agent.joinport import Target, unverified_chain
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot
from overmesh.controller.trust import certificates as certificates_module
from overmesh.controller.trust.certificates import ServerCertificates
from overmesh.controller.trust.rootkey import RootKey
from overmesh.errors import UnreachableError
from overmesh.proto.roots import Roots
from tests.unit.controller.lab import Clock, Host

Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@asynccontextmanager
async def serving(certificates: ServerCertificates, *, mutual: bool = False) -> AsyncIterator[int]:
    """Answer on a port that shows these certificates."""

    async def echo(request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return request

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"M": handler}),))
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials(mutual=mutual))
    await server.start()
    yield port
    await server.stop(None)


@asynccontextmanager
async def calling(port: int, *credentials: bytes) -> AsyncIterator[Call]:
    """Connect with roots, and with a key and a certificate if there are."""
    options = [("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    secure = grpc.ssl_channel_credentials(*credentials)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", secure, options=options) as channel:
        yield channel.unary_unary("/t/M")


async def shown(port: int) -> x509.Certificate:
    return (await unverified_chain(Target("127.0.0.1", port)))[0]


async def test_another_certificate_is_shown_and_open_connections_stay() -> None:
    root = MeshRoot.new()
    certificates = ServerCertificates(root, lambda: root.anchor, [])
    async with serving(certificates) as port, calling(port, root.pem) as call:
        assert await call(b"1") == b"1"
        before = await shown(port)
        assert await shown(port) == before
        certificates.renew()
        assert await shown(port) != before
        assert await call(b"2") == b"2"
        async with calling(port, root.pem) as another:
            assert await another(b"3") == b"3"


async def test_members_of_every_root_that_is_trusted_may_call_and_nobody_else() -> None:
    old, following = RootKey.new(), RootKey.new()
    root = MeshRoot(old, following)
    trusted = [Roots((old.certificate,))]
    certificates = ServerCertificates(root, lambda: trusted[-1], [])
    host = Host("a")
    request, identity = CertificateRequest.parse(host.csr()), Identity("mesh", host.id)
    key = host.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    both = old.pem + following.pem

    def of(signing: RootKey) -> bytes:
        leaf = MeshRoot(signing).issue_node(request, identity)
        return x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM)

    async def let_in(port: int) -> list[bool]:
        answered = []
        for signing in (old, following):
            async with calling(port, both, key, of(signing)) as call:
                try:
                    answered.append(await call(b"x", timeout=5) == b"x")
                except grpc.aio.AioRpcError:
                    answered.append(False)
        return answered

    async with serving(certificates, mutual=True) as port:
        assert await let_in(port) == [True, False]
        trusted.append(Roots((old.certificate, following.certificate)))
        root.sign_with(following.pin)
        assert await let_in(port) == [True, True]
        (await shown(port)).verify_directly_issued_by(following.certificate)
        trusted.append(Roots((following.certificate,)))
        root.hold(following)
        assert await let_in(port) == [False, True]


@pytest.mark.parametrize("seconds", [44_000, -10])
async def test_it_is_renewed_at_half_its_time_and_when_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(certificates_module, "_LOOK_EVERY", 0.01)
    clock = Clock()
    root = MeshRoot(RootKey.new(), clock=clock)
    certificates = ServerCertificates(root, lambda: root.anchor, [], clock)
    keeping = asyncio.create_task(certificates.keep_fresh())
    before = certificates.certificate
    await asyncio.sleep(0.05)
    assert certificates.certificate is before
    clock.now += seconds
    async with asyncio.timeout(5):
        while certificates.certificate is before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert certificates.certificate.since == clock.now
    keeping.cancel()


@pytest.mark.parametrize(
    ("shift", "said"), [(86_400, "certificate is not yet valid"), (-3 * 86_400, "certificate has expired")]
)
async def test_a_clock_that_is_off_is_told_from_nobody_there(shift: int, said: str) -> None:
    key = RootKey.new()
    root = MeshRoot(key, clock=lambda: time.time() + shift)
    async with (
        serving(ServerCertificates(root, lambda: root.anchor, [])) as port,
        calling(port, key.pem) as call,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    error = rpc.raised(caught.value, "controller c")
    assert isinstance(error, UnreachableError)
    assert error.cause == f"the certificate of controller c is not accepted: {said}"
    assert "clocks" in error.fix
