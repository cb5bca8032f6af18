import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from overmesh.errors import UsageError
from overmesh.token import JoinToken

ROOT = generate_private_key(SECP256R1()).public_key()


def test_a_token_survives_being_copied() -> None:
    token = JoinToken.new(ROOT)
    assert JoinToken.parse(f"  {token}\n") == token
    assert str(token).startswith(f"om2.{token.id}.")


def test_it_brings_the_key_of_the_mesh_root() -> None:
    token = JoinToken.new(ROOT)
    assert JoinToken.parse(str(token)).root == ROOT
    assert len(token.pin) == 33


def test_no_two_tokens_are_alike() -> None:
    tokens = [JoinToken.new(ROOT) for _ in range(100)]
    assert len({token.id for token in tokens}) == len({token.secret for token in tokens}) == 100


@given(st.data())
def test_a_mistyped_token_never_passes_for_the_right_one(data: st.DataObject) -> None:
    token = JoinToken.new(ROOT)
    text = str(token)
    place = data.draw(st.integers(0, len(text) - 1))
    typed = text[:place] + data.draw(st.characters(codec="ascii")) + text[place + 1 :]
    with contextlib.suppress(UsageError):
        assert (JoinToken.parse(typed) == token) == (typed == text)


def test_a_token_of_the_former_kind_is_named() -> None:
    with pytest.raises(UsageError, match="tokens of the form om1 are no longer taken") as raised:
        JoinToken.parse(str(JoinToken.new(ROOT)).replace("om2", "om1"))
    assert "meshctl token create" in raised.value.fix


def test_a_pin_that_is_no_key_is_refused() -> None:
    words = str(JoinToken.new(ROOT)).split(".")
    for pin in ("A" * 44, "__" * 22, words[3][:-4]):
        with pytest.raises(UsageError, match="incomplete or mistyped"):
            JoinToken.parse(".".join([*words[:3], pin]))


@pytest.mark.parametrize("text", ["", "om2", "om2...", "om3.aaaaaaaaaa.x.y", "om2.zz.x.y", "om2.a.b.c.d"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        JoinToken.parse(text)
