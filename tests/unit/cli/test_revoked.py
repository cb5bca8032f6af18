import json

from overmesh.errors import NotFoundError
from overmesh.proto import admin_pb2, mesh_pb2
from tests.unit.cli.conftest import NOW, Fake, Meshctl

BANNED = admin_pb2.Revocation(
    node_id="6xkq2jzv4wpa7ydn",
    network="mesh",
    name="web1",
    revoked_serial=7,
    banned=True,
    reason="stolen [red]",
    at=NOW - 120,
)
REMOVED = admin_pb2.Revocation(
    node_id="wphii6wgaubk57hp", network="mesh", name="web2", not_after=NOW + 5 * 86400, at=NOW - 3600
)


def test_revoke(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RevokeNode"] = admin_pb2.RevokeNodeReply(
        revocation=BANNED, revision=12, was_member=True
    )
    ran = meshctl("node", "revoke", "web1", "--reason", "stolen")
    assert (ran.code, ran.out) == (
        0,
        "Revoked web1 (6xkq2jzv4wpa7ydn) at revision 12.\n"
        "It is out, and its key never comes back.\n"
        "See that all agents know: meshctl wait --revision 12\n",
    )
    request = admin_pb2.RevokeNodeRequest(network="mesh", node="web1", reason="stolen")
    assert controller.requests == [request]


def test_revoke_a_key_that_was_never_seen_as_json(controller: Fake, meshctl: Meshctl) -> None:
    never_seen = admin_pb2.Revocation(node_id="6xkq2jzv4wpa7ydn", banned=True)
    controller.answers["RevokeNode"] = admin_pb2.RevokeNodeReply(revocation=never_seen, revision=12)
    assert "Revoked 6xkq2jzv4wpa7ydn at" in meshctl("node", "revoke", "6xkq2jzv4wpa7ydn", "--unknown").out
    asked = admin_pb2.RevokeNodeRequest(network="mesh", node="6xkq2jzv4wpa7ydn", unknown=True)
    assert controller.requests == [asked]
    said = json.loads(meshctl("node", "revoke", "6xkq2jzv4wpa7ydn", "--json").out)
    assert (said["was_member"], said["revocation"]["banned"], said["revocation"]["not_after"]) == (
        False,
        True,
        None,
    )


def test_revoke_nobody(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["RevokeNode"] = NotFoundError("no such node", "look")
    ran = meshctl("node", "revoke", "nobody")
    assert (ran.code, ran.err) == (1, "meshctl: no such node. Look.\n")


def test_list_revoked(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListRevocations"] = admin_pb2.ListRevocationsReply(
        revocations=[BANNED, REMOVED], revision=12
    )
    ran = meshctl("node", "list", "--revoked")
    assert ran.out == (
        "NAME  ID                SINCE   FOR                 REASON\n"
        "web1  6xkq2jzv4wpa7ydn  2m ago  ever                stolen [red]\n"
        "web2  wphii6wgaubk57hp  1h ago  5d, or a new token\n"
    )
    said = json.loads(meshctl("node", "list", "--revoked", "--json").out)
    assert [one["id"] for one in said["revoked"]] == [BANNED.node_id, REMOVED.node_id]


def test_nobody_was_taken_out(controller: Fake, meshctl: Meshctl) -> None:
    controller.answers["ListRevocations"] = admin_pb2.ListRevocationsReply()
    assert meshctl("node", "list", "--revoked").out == "No node was taken out.\n"


def test_what_is_wrong_with_the_store_is_listed_with_the_nodes(controller: Fake, meshctl: Meshctl) -> None:
    problem = mesh_pb2.Problem(subject="store", reason="had lost the revocation of web1; put back")
    controller.answers["ListNodes"] = admin_pb2.ListNodesReply(problems=[problem])
    assert "! store: had lost the revocation of web1; put back\n" in meshctl("node", "list").out
    said = json.loads(meshctl("node", "list", "--json").out)
    assert said["problems"] == [{"subject": problem.subject, "reason": problem.reason}]
