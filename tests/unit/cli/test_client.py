"""How meshctl asks: who it says is typing, and what it does when the answer is lost."""

from typing import Any

import pytest

from overmesh import rpc
from overmesh.cli import client
from overmesh.errors import StoreUnavailableError
from overmesh.proto import admin_pb2
from tests.unit.cli.conftest import Fake, Meshctl


def test_a_call_whose_answer_was_lost_is_made_again_as_the_same_request(
    controller: Fake, meshctl: Meshctl
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(metadata: dict[str, Any]) -> Any:
        asked.append(metadata)
        lost = StoreUnavailableError("it may or may not have happened")
        return admin_pb2.RevokeTokenReply(revision=7) if len(asked) > 2 else lost

    controller.answers["RevokeToken"] = answer
    ran = meshctl("token", "revoke", "3f9a0c27d1")
    assert (ran.code, ran.out) == (0, "Revoked 3f9a0c27d1.\n")
    (request,) = {metadata[rpc.REQUEST_ID] for metadata in asked}
    assert rpc.is_request_id(request)
    meshctl("token", "revoke", "3f9a0c27d1")
    assert asked[-1][rpc.REQUEST_ID] != request


def test_it_is_not_tried_for_ever(
    controller: Fake, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT", 1.2)
    controller.answers["RevokeToken"] = StoreUnavailableError("the store is away")
    assert meshctl("token", "revoke", "x").err == "meshctl: the store is away.\n"
    assert len(controller.requests) == 3


@pytest.mark.parametrize(("user", "said"), [("alice", "alice"), ("DOM\\jörg x", "DOM_j_rg_x")])
def test_who_is_typing(
    controller: Fake, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch, user: str, said: str
) -> None:
    monkeypatch.setenv("SUDO_USER", user)
    names: list[str] = []

    def answer(metadata: dict[str, Any]) -> Any:
        names.append(metadata[rpc.OPERATOR])
        return admin_pb2.ListTokensReply()

    controller.answers["ListTokens"] = answer
    assert meshctl("token", "list").code == 0
    assert names == [said]
