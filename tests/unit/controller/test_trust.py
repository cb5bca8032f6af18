import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot, load_or_create
from overmesh.errors import CorruptStateError, InvalidError, PermissionMissingError, StateError
from overmesh.token import root_pin
from tests.unit.controller.lab import ROOT, Host


def test_the_root_is_made_once_and_kept(tmp_path: Path) -> None:
    made = load_or_create(tmp_path, None)
    assert made.pin == root_pin(made.certificate.public_bytes(Encoding.DER))
    assert stat.S_IMODE((tmp_path / "root.key").stat().st_mode) == 0o600
    assert load_or_create(tmp_path, None).pin == load_or_create(tmp_path, made.pin).pin == made.pin
    assert sorted(file.name for file in tmp_path.iterdir()) == ["root.key", "root.pem"]


def test_a_start_that_was_killed_between_the_two_files_is_made_again(tmp_path: Path) -> None:
    load_or_create(tmp_path, None)
    (tmp_path / "root.key").unlink()
    (tmp_path / ".root.key.new").write_bytes(b"half of")
    assert load_or_create(tmp_path, None).pin == load_or_create(tmp_path, None).pin


def test_no_key_for_a_store_that_has_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"root\.key is missing") as raised:
        load_or_create(tmp_path, ROOT.pin)
    assert "restore" in raised.value.fix
    assert not (tmp_path / "root.key").exists()


def test_the_key_of_another_mesh(tmp_path: Path) -> None:
    load_or_create(tmp_path, None)
    with pytest.raises(StateError, match="is of another mesh"):
        load_or_create(tmp_path, ROOT.pin)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("root.key", b"", "not a PEM file"),
        ("root.key", b"\xff" * 99, "not a PEM file"),
        ("root.pem", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "not a PEM file"),
        ("root.pem", ROOT.pem, r"not the certificate of root\.key"),
        ("root.pem", None, "it is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    load_or_create(tmp_path, None)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CorruptStateError, match=message) as raised:
        load_or_create(tmp_path, None)
    assert str(tmp_path / file) in raised.value.cause


def test_a_directory_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PermissionMissingError, match="file"):
        load_or_create(tmp_path / "file" / "state", None)


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
