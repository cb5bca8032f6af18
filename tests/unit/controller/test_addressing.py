from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.controller.addressing import choose
from overmesh.errors import PoolExhaustedError
from overmesh.model import Network, Range


def network(*ranges: Range) -> Network:
    return Network("lab", 1, ranges)


SMALL = st.integers(24, 30).map(lambda length: IPv4Network(("10.1.2.0", length)))


@given(SMALL, st.text(min_size=1))
def test_a_pool_gives_out_every_host_address_once_and_then_says_so(cidr: IPv4Network, salt: str) -> None:
    taken: set[str] = set()
    for number in range(cidr.num_addresses - 2):
        (address,) = choose(network(cidr), f"{salt}{number}", taken)
        assert str(address) not in taken
        taken.add(str(address))
    assert taken == set(map(str, cidr.hosts()))
    with pytest.raises(PoolExhaustedError, match=str(cidr)) as raised:
        choose(network(cidr), "one more", taken)
    assert "node remove" in raised.value.fix


@given(st.text())
def test_one_address_of_each_range_and_the_same_ones_again(node: str) -> None:
    ranges: tuple[Range, ...] = (IPv4Network("10.1.0.0/16"), IPv6Network("fd00:1:2:3::/64"))
    first = choose(network(*ranges), node, ())
    assert first == choose(network(*ranges), node, ())
    assert all(address in cidr for address, cidr in zip(first, ranges, strict=True))


@given(st.text())
def test_ipv6_takes_another_hash_on_a_clash(node: str) -> None:
    lab = network(IPv6Network("fd00:1:2::/48"))
    (first,) = choose(lab, node, ())
    (second,) = choose(lab, node, {str(first)})
    assert first != second
    assert all(address in IPv6Network("fd00:1:2::/48") for address in (first, second))


def test_an_ipv6_range_of_clashes_is_full() -> None:
    class Everything:
        def __contains__(self, _: object) -> bool:
            return True

    with pytest.raises(PoolExhaustedError, match="fd00:1:2:3::/64"):
        choose(network(IPv6Network("fd00:1:2:3::/64")), "a", Everything())
