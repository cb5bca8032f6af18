import datetime
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from overmesh.model import Root, root_key
from overmesh.proto.roots import Roots, fingerprint, is_root_key
from overmesh.proto.signed import map_key, sign

Key = ec.EllipticCurvePrivateKey
NAME = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "overmesh root")])
OLD, NEXT, THIRD, THIEF = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))


def certificate(key: Key | Ed25519PrivateKey) -> x509.Certificate:
    today = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 7, today, today.replace(year=2046))
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else SHA256())


CERTIFICATES = {key: certificate(key) for key in (OLD, NEXT, THIRD, THIEF)}


def roots(*keys: Key) -> Roots:
    return Roots(tuple(CERTIFICATES[key] for key in keys))


def record(of: Key, by: Key, *, retired: bool = False) -> tuple[str, bytes]:
    root = Root(CERTIFICATES[of].public_bytes(Encoding.DER), retired=retired)
    return map_key(root), sign(root, by)


def test_a_root_brings_in_the_next_one_and_that_retires_it() -> None:
    both = roots(OLD).following([record(NEXT, OLD)])
    assert both == roots(OLD, NEXT)
    assert both.following([record(NEXT, OLD), record(OLD, NEXT, retired=True)]) == roots(NEXT)


def test_who_slept_through_two_rotations_finds_the_way_in_any_order() -> None:
    chain = [
        record(NEXT, OLD),
        record(OLD, NEXT, retired=True),
        record(THIRD, NEXT),
        record(NEXT, THIRD, retired=True),
    ]
    for order in permutations(chain):
        assert roots(OLD).following(order) == roots(THIRD)
    assert roots(THIRD).following(chain) == roots(THIRD)


def test_a_root_that_is_not_trusted_says_nothing() -> None:
    assert roots(OLD).following([record(THIEF, THIEF), record(OLD, THIEF, retired=True)]) == roots(OLD)


def test_the_old_root_can_not_retire_the_next_nor_itself() -> None:
    said = [record(NEXT, OLD, retired=True), record(OLD, OLD, retired=True)]
    assert roots(OLD, NEXT).following(said) == roots(OLD, NEXT)


def test_what_a_stolen_root_brought_in_goes_with_it() -> None:
    said = [record(THIEF, OLD), record(NEXT, OLD), record(OLD, NEXT, retired=True)]
    for order in permutations(said):
        assert roots(OLD).following(order) == roots(NEXT)
    assert roots(NEXT).following(said) == roots(NEXT)


def test_a_circle_ends() -> None:
    circle = [record(THIEF, OLD), record(OLD, THIEF), record(OLD, THIEF, retired=True)]
    assert roots(OLD).following(circle) == roots(THIEF)


def test_each_of_them_verifies_and_is_named() -> None:
    both = roots(OLD, NEXT)
    for key in (OLD, NEXT):
        both.verify(key.sign(b"data", ec.ECDSA(SHA256())), b"data", ec.ECDSA(SHA256()))
        name, signed = record(THIRD, key)
        assert both.signer(name, signed) == fingerprint(CERTIFICATES[key]) == both.issuer(CERTIFICATES[key])
    with pytest.raises(InvalidSignature):
        both.verify(THIEF.sign(b"data", ec.ECDSA(SHA256())), b"data", ec.ECDSA(SHA256()))
    assert both.signer(*record(THIRD, THIEF)) == both.issuer(CERTIFICATES[THIEF]) == ""


def test_they_are_kept_as_pem() -> None:
    both = roots(OLD, NEXT)
    assert Roots.from_pem(both.pem) == both
    strange = certificate(Ed25519PrivateKey.generate()).public_bytes(Encoding.PEM)
    for pem in (b"", b"\xff", strange):
        with pytest.raises(ValueError):  # noqa: PT011
            Roots.from_pem(pem)


@given(st.lists(st.tuples(st.text(max_size=9).map(root_key) | st.text(max_size=9), st.binary(max_size=40))))
def test_any_bytes(records: list[tuple[str, bytes]]) -> None:
    assert roots(OLD).following(records) == roots(OLD)


@given(st.binary(max_size=80))
def test_a_signed_certificate_that_is_none(der: bytes) -> None:
    root = Root(der)
    assert is_root_key(map_key(root))
    assert roots(OLD).following([(map_key(root), sign(root, OLD))]) == roots(OLD)
