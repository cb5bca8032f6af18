"""How meshctl asks: who it says is typing, and what it does when the answer is lost."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Any

import pytest

from overmesh import rpc
from overmesh.cli import client
from overmesh.config import ControllerConfig
from overmesh.errors import OvermeshError, StoreUnavailableError, UnconfirmedError, UnreachableError
from overmesh.model import Problem
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


# A change that may have been made.

UNANSWERED = UnconfirmedError("etcd owes the answer; it may or may not have happened", "look, then try again")
AWAY = StoreUnavailableError("etcd can't be reached", "see that etcd runs there")
LOST = UnreachableError("the controller of this host does not answer")
GONE = UnreachableError("no controller runs on this host")
DOUBT = "; it may or may not have happened. See `meshctl token list` before you try again.\n"


def test_a_doubt_that_an_earlier_attempt_left_stays(
    controller: Fake, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT", 1.2)
    attempts = iter([UNANSWERED, *[AWAY] * 10])
    controller.answers["CreateToken"] = lambda _: next(attempts)
    assert meshctl("token", "create").err == f"meshctl: etcd can't be reached{DOUBT}"
    controller.answers["CreateToken"] = UNANSWERED
    assert meshctl("token", "create").err == f"meshctl: etcd owes the answer{DOUBT}"


def test_a_controller_that_does_not_answer(
    controller: Fake, meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT", 0.5)
    over = threading.Event()
    controller.answers |= dict.fromkeys(("RevokeToken", "ListTokens"), lambda _: over.wait(10) and AWAY)
    ran = meshctl("token", "revoke", "x")
    assert (ran.code, ran.err) == (1, f"meshctl: the controller of this host does not answer{DOUBT}")
    assert "may or may not" not in meshctl("token", "list").err, "a question changes nothing"
    over.set()


@pytest.mark.parametrize(
    ("attempts", "doubted"),
    [
        ([GONE], False),
        ([AWAY, GONE], False),
        ([AWAY, LOST], True),
        ([LOST, GONE], True),
        ([UNANSWERED, AWAY, GONE], True),
    ],
)
async def test_whether_any_attempt_may_have_been_carried_out(
    monkeypatch: pytest.MonkeyPatch, attempts: list[OvermeshError], doubted: bool
) -> None:
    """The last one is as all that follow."""
    coming = chain(attempts, repeat(attempts[-1]))

    @asynccontextmanager
    async def opened(_config: ControllerConfig, _request: str) -> AsyncIterator[OvermeshError]:
        error = next(coming)
        if error is GONE:
            raise error
        yield error

    async def call(stub: OvermeshError) -> None:
        raise stub

    monkeypatch.setattr(client, "controller", opened)
    monkeypatch.setattr(client, "_PAUSE", 0.01)
    monkeypatch.setattr(client, "CALL_TIMEOUT", 0.5)
    with pytest.raises(OvermeshError) as raised:
        await client._persisted(ControllerConfig(), call, "meshctl token list")
    assert isinstance(raised.value, UnconfirmedError) == doubted


@pytest.mark.parametrize(
    "verb", [("token", "list"), ("node", "list"), ("network", "list"), ("root", "status")]
)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_what_is_wrong_with_an_answer_is_said_beside_it(
    controller: Fake, meshctl: Meshctl, verb: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    controller.answers |= {
        "ListTokens": admin_pb2.ListTokensReply(),
        "ListNodes": admin_pb2.ListNodesReply(),
        "ListNetworks": admin_pb2.ListNetworksReply(),
        "ShowRoots": admin_pb2.RootsState(),
    }
    well = meshctl(*verb, *flags)
    controller.problems = [Problem("store", "not heard for 24 s: it can't be reached")]
    ran = meshctl(*verb, *flags)
    assert ran.err == "! store: not heard for 24 s: it can't be reached\n"
    assert (ran.code, ran.out, well.err) == (0, well.out, "")


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
