import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overmesh.errors import UsageError
from overmesh.token import JoinToken


def test_a_token_survives_being_copied() -> None:
    token = JoinToken.new(b"root certificate")
    assert JoinToken.parse(f"  {token}\n") == token
    assert str(token).startswith(f"om1.{token.id}.")


def test_the_pin_is_the_hash_of_the_root_certificate() -> None:
    assert JoinToken.new(b"root certificate").pin == hashlib.sha256(b"root certificate").digest()


def test_no_two_tokens_are_alike() -> None:
    tokens = [JoinToken.new(b"") for _ in range(100)]
    assert len({token.id for token in tokens}) == len({token.secret for token in tokens}) == 100


@given(st.data())
def test_a_mistyped_token_never_passes_for_the_right_one(data: st.DataObject) -> None:
    token = JoinToken.new(b"root")
    text = str(token)
    place = data.draw(st.integers(0, len(text) - 1))
    typed = text[:place] + data.draw(st.characters(codec="ascii")) + text[place + 1 :]
    with contextlib.suppress(UsageError):
        assert (JoinToken.parse(typed) == token) == (typed == text)


@pytest.mark.parametrize("text", ["", "om1", "om1...", "om2.aaaaaaaaaa.x.y", "om1.zz.x.y", "om1.a.b.c.d"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        JoinToken.parse(text)
