from hypothesis import given
from hypothesis import strategies as st

from overmesh.model import Digest

items = st.dictionaries(st.text(max_size=10), st.binary(max_size=20), max_size=10)


@given(items, st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_arrival(values: dict[str, bytes], random: object) -> None:
    pairs = list(values.items())
    random.shuffle(pairs)  # type: ignore[attr-defined]
    digest = Digest()
    for key, value in pairs:
        digest = digest.add(key, value)
    assert digest == Digest.of(values)


@given(items, st.text(max_size=10), st.binary(max_size=20))
def test_adding_then_removing_gives_back_the_old_digest(
    values: dict[str, bytes], key: str, value: bytes
) -> None:
    before = Digest.of(values)
    assert before.add(key, value) != before
    assert before.add(key, value).remove(key, value) == before


@given(items)
def test_the_digest_survives_the_way(values: dict[str, bytes]) -> None:
    digest = Digest.of(values)
    assert len(digest.to_bytes()) == 32
    assert Digest.from_bytes(digest.to_bytes()) == digest


def test_key_and_value_do_not_run_into_each_other() -> None:
    assert Digest.of({"ab": b"c"}) != Digest.of({"a": b"bc"})
    assert Digest.of({"a": b"x", "b": b"y"}) != Digest.of({"a": b"y", "b": b"x"})
