"""Whether the agents that are with this controller hold a network's map as of some revision."""

import asyncio

from overmesh.controller.agents import Agents, Behind
from overmesh.controller.mirror import Mirror
from overmesh.controller.view import NetworkView
from overmesh.proto import admin_pb2

# Asking all agents every so often costs less than being told of every ack.
_LOOK_EVERY = 0.05


class Convergence:
    """Waits for agents.

    Args:
        mirror: whose maps they follow.
        agents: that are connected here.
        name: of this controller, should it be behind itself.

    """

    def __init__(self, mirror: Mirror, agents: Agents, name: str) -> None:
        self._mirror = mirror
        self._agents = agents
        self._name = name

    async def wait(self, network: str, revision: int, seconds: float) -> admin_pb2.WaitReply:
        """Return when every agent holds the map as of a revision of the store, or time is up.

        Raises:
            NotFoundError: there is no such network.

        """
        view = self._mirror.view(network)
        try:
            async with asyncio.timeout(seconds):
                await self._mirror.reached(revision)
                # Later revisions of the store may have changed other networks only.
                target = min(revision, view.map.head.revision)
                while any(self._agents.behind(view.name, target)):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            pass
        return self._reply(view, revision)

    def _reply(self, view: NetworkView, wanted: int) -> admin_pb2.WaitReply:
        behind = list(self._agents.behind(view.name, min(wanted, view.map.head.revision)))
        messages = [_behind_message(view, agent) for agent in behind]
        if self._mirror.revision < wanted:
            why = "it has not heard of that revision from the store"
            messages.append(
                admin_pb2.Behind(name=self._name, acked_revision=self._mirror.revision, reason=why)
            )
        return admin_pb2.WaitReply(
            converged=not messages,
            revision=wanted,
            agents=self._agents.count(view.name),
            behind=messages,
        )


def _behind_message(view: NetworkView, agent: Behind) -> admin_pb2.Behind:
    node = view.node(agent.node_id)
    return admin_pb2.Behind(
        name=node.name if node else agent.node_id, acked_revision=agent.acked, reason=agent.reason
    )
