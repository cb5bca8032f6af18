"""How an etcd is named, and what is said when that can't be right."""

from pathlib import Path

import pytest

from overmesh.controller.store.etcd.target import EtcdTarget
from overmesh.errors import ConfigError


@pytest.mark.parametrize(
    ("rest", "endpoints", "prefix"),
    [
        ("//a", ("a:2379",), ""),
        ("//a/", ("a:2379",), ""),
        ("//a:1,b,10.0.0.1:3/mesh", ("a:1", "b:2379", "10.0.0.1:3"), "/mesh"),
        ("//[fd00::1],[fd00::2]:7/a/b.c/", ("[fd00::1]:2379", "[fd00::2]:7"), "/a/b.c"),
    ],
)
def test_members_and_a_prefix(rest: str, endpoints: tuple[str, ...], prefix: str) -> None:
    target = EtcdTarget.parse(rest)
    assert (target.endpoints, target.prefix, dict(target.files)) == (endpoints, prefix, {})


def test_certificates() -> None:
    target = EtcdTarget.parse("//a/mesh?ca=/etc/x/ca.pem&cert=c.pem&key=k%20.pem")
    assert target.files == {"ca": Path("/etc/x/ca.pem"), "cert": Path("c.pem"), "key": Path("k .pem")}
    assert target.url == "etcd://a:2379/mesh"


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("", "names no host"),
        ("a:2379", "names no host"),
        ("///mesh", "names no host"),
        ("//a#b", "fragment"),
        ("//a,,b", "'' is not HOST"),
        ("//a:0", "'a:0' is not HOST"),
        ("//a:65536", "is not HOST"),
        ("//a:x", "is not HOST"),
        ("//user:password@a", "is not HOST"),
        ("//a b", "is not HOST"),
        ("//[fd00::1", "Invalid IPv6"),
        ("//fd00::1", "is not HOST"),
        ("//a//mesh", "prefix"),
        ("//a/m%00h", "prefix"),
        ("//a/ü", "prefix"),
        ("//a?ca", "bad query field"),
        ("//a?ca=", "ca= is not one of"),
        ("//a?tls=1", "tls=1 is not one of"),
        ("//a?ca=x&ca=y", "each once"),
        ("//a?cert=x&key=y", "need ca"),
        ("//a?ca=x&key=y", "go together"),
    ],
)
def test_what_can_not_be(rest: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        EtcdTarget.parse(rest)
    assert caught.value.fix
    assert "\n" not in caught.value.cause
