"""The controller's own server certificate: short-lived, and replaced while its ports stay open.

gRPC asks for it in every handshake. Connections that are open go on with what they began with.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import grpc

from overmesh.controller.trust import MeshRoot
from overmesh.proto.roots import Roots

# Seconds; the clock may have been set meanwhile.
_LOOK_EVERY = 60.0

_log = logging.getLogger("overmesh.controller")


class ServerCertificates:
    """One certificate for the join port and the mesh port.

    Args:
        root: that issues it.
        trusted: returns the roots whose nodes may call on the mesh port.
        hosts: names and addresses that it is to be valid for.
        clock: unix seconds.

    """

    def __init__(
        self,
        root: MeshRoot,
        trusted: Callable[[], Roots],
        hosts: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._trusted = trusted
        self._hosts = hosts
        self._clock = clock
        self._configurations: dict[bool, grpc.ServerCertificateConfiguration] = {}
        self.renew()
        root.on_change(self.renew)

    def renew(self) -> None:
        """Show another certificate in handshakes from now on, and take callers of the roots trusted now."""
        self.certificate = self._root.issue_server(self._hosts)
        pair = (self.certificate.key, self.certificate.chain)
        for mutual, roots in ((False, None), (True, self._trusted().pem)):
            self._configurations[mutual] = grpc.ssl_server_certificate_configuration([pair], roots)

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Return what a port is opened with.

        Args:
            mutual: whether callers have to show a certificate of a root that is trusted.

        """
        shown = self._configurations[mutual]

        def newer() -> grpc.ServerCertificateConfiguration | None:
            # Called on a thread of gRPC's in each handshake; to return the same again would cost a parse.
            nonlocal shown
            before, shown = shown, self._configurations[mutual]
            return None if shown is before else shown

        # None means "as before"; the stubs do not know that.
        return grpc.dynamic_ssl_server_credentials(shown, newer, mutual)  # type: ignore[arg-type]

    async def keep_fresh(self) -> NoReturn:
        """Renew it when half of its time is over, or when the clock was set to before it."""
        lifetime = self._root.lifetime
        while True:
            await asyncio.sleep(min(_LOOK_EVERY, lifetime / 10))
            if not 0 <= self._clock() - self.certificate.since < lifetime / 2:
                self.renew()
                _log.info("server certificate renewed", extra={"seconds": lifetime})
