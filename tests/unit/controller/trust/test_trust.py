import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot
from overmesh.errors import InvalidError
from tests.unit.controller.lab import ROOT, Host


def test_a_node_certificate_is_good_for_that_client_only() -> None:
    host = Host("a")
    der = ROOT.issue_node(CertificateRequest.parse(host.csr()), Identity("mesh", "abc"))
    leaf = x509.load_der_x509_certificate(der)
    verifier = PolicyBuilder().store(Store([ROOT.certificate])).build_client_verifier()
    assert verifier.verify(leaf, []).subjects == [x509.UniformResourceIdentifier("overmesh:mesh/abc")]
    assert leaf.public_key() == host.tls.public_key()
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_what_is_asked_for_in_the_request_beside_the_key_is_not_granted() -> None:
    key = generate_private_key(SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("controller")]), critical=False)
    csr = builder.sign(key, SHA256()).public_bytes(Encoding.DER)
    der = ROOT.issue_node(CertificateRequest.parse(csr), Identity("mesh", "abc"))
    extensions = x509.load_der_x509_certificate(der).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["overmesh:mesh/abc"]


def broken_signature() -> bytes:
    csr = bytearray(Host("a").csr())
    csr[-1] ^= 1
    return bytes(csr)


def request_for(key: object, algorithm: SHA256 | None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("csr", "message"),
    [
        (b"", "can't be read"),
        (b"\x30\x03abc", "can't be read"),
        (broken_signature(), "not signed by its own key"),
        (request_for(generate_private_key(SECP384R1()), SHA256()), "not for an ECDSA P-256 key"),
        (request_for(Ed25519PrivateKey.generate(), None), "not for an ECDSA P-256 key"),
    ],
)
def test_requests_that_are_refused(csr: bytes, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        CertificateRequest.parse(csr)


def test_identity_goes_into_the_certificate_and_comes_out_of_the_call() -> None:
    identity = Identity("mesh", "abc")
    assert Identity.of_caller({"peer_uri": [identity.uri.encode()]}) == identity


@pytest.mark.parametrize(
    "uris", [[], [b"overmesh:mesh"], [b"spiffe:mesh/a"], [b"\xff"], [b"overmesh:a/b", b"overmesh:a/c"]]
)
def test_other_certificates_are_nobody(uris: list[bytes]) -> None:
    with pytest.raises(InvalidError, match="not that of a node"):
        Identity.of_caller({"peer_uri": uris})


def test_two_roots_do_not_trust_each_other() -> None:
    leaf = x509.load_der_x509_certificate(
        MeshRoot.new().issue_node(CertificateRequest.parse(Host("a").csr()), Identity("mesh", "abc"))
    )
    verifier = PolicyBuilder().store(Store([ROOT.certificate])).build_client_verifier()
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(leaf, [])
