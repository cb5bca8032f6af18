"""Join tokens: who may let hosts in, how many, until when.

Only the SHA-256 of the secret is kept: it is 192 random bits, so nothing slower is needed.
"""

import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Self

from overmesh.controller.audit import Deed
from overmesh.controller.members.names import checked_tag
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.serving.caller import caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import MAX_OPS, Delete, KeyValue, Put, absent, unchanged
from overmesh.controller.trust import MeshRoot, authentic
from overmesh.errors import InvalidError, NotFoundError, StoreCorruptError, TokenError
from overmesh.token import JoinToken

MAX_TTL = 10 * 365 * 86400
MAX_TAGS = 16
# A token that no longer lets anyone in stays for a while, so that the error can say why.
KEPT_AFTER_EXPIRY = 7 * 86400

_FIX = "ask for a new one: `meshctl token create`"
_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Token:
    """What the controller knows of a token. uses: 0 is unlimited; times in unix seconds.

    approval: a host that comes with it has to wait for an operator (see pending.py).
    """

    id: str
    network: str
    secret_sha256: str
    created: int
    expires: int
    uses: int = 0
    used: int = 0
    revoked: bool = False
    tags: tuple[str, ...] = ()
    approval: bool = False

    @property
    def uses_left(self) -> int:
        """How many hosts it still lets in; 0 too when it is unlimited."""
        return max(0, self.uses - self.used)

    def once_more(self) -> Self:
        """Return it as it is when it has let one more in."""
        return replace(self, used=self.used + 1)

    def deed(self, what: str, **details: str) -> Deed:
        """Return what happens to it, for the audit."""
        said = {name: text for name, text in details.items() if text}
        return Deed(what, self.network, self.id, details=said)

    def put(self, root: MeshRoot) -> Put:
        """Return the operation that writes it to the store."""
        key = keys.token(self.id)
        return Put(key, authentic.encode(root, key, asdict(self)))

    @classmethod
    def read(cls, kv: KeyValue, root: MeshRoot) -> Self:
        """Read a value from the store.

        Raises:
            StoreCorruptError: it is not one that this mesh has written.

        """
        fields = authentic.decode(root, kv, "a token")
        return cls(**{**fields, "tags": tuple(fields["tags"])})

    def check_known_by(self, secret: str) -> None:
        """Raise TokenError unless this is its secret and it has not been revoked."""
        if not hmac.compare_digest(self.secret_sha256, _hashed(secret)):
            raise TokenError(f"the secret of token {self.id} is wrong", "copy the whole token")
        if self.revoked:
            raise TokenError(f"token {self.id} was revoked", _FIX)

    def check_lets_in(self, now: float) -> None:
        """Raise TokenError when it has expired or is used up."""
        if now >= self.expires:
            moment = datetime.fromtimestamp(self.expires, UTC)
            raise TokenError(f"token {self.id} expired at {moment:%Y-%m-%d %H:%M:%S} UTC", _FIX)
        if self.uses and not self.uses_left:
            times = "once" if self.uses == 1 else f"{self.uses} times"
            raise TokenError(f"token {self.id} is used up: it was good {times}", _FIX)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Tokens:
    """The tokens of a mesh.

    Args:
        mirror: of the store.
        root: of the mesh; the pin of its certificate is part of each token.
        clock: unix seconds.

    """

    def __init__(self, mirror: Mirror, root: MeshRoot, clock: Callable[[], float]) -> None:
        self._mirror = mirror
        self._root = root
        self._clock = clock

    async def create(
        self, network: str, ttl: int, uses: int, tags: Sequence[str], *, approval: bool = False
    ) -> tuple[Token, JoinToken]:
        """Make a token; the JoinToken holds the secret, which only a repetition of the request gets again.

        Args:
            network: that it lets into.
            ttl: seconds until it expires.
            uses: how many hosts it lets in; 0: any number.
            tags: given to the nodes that join with it.
            approval: whether an operator has to let each of them in.

        Raises:
            InvalidError, NotFoundError

        """
        self._mirror.view(network)
        if not 0 < ttl <= MAX_TTL:
            raise InvalidError(f"a token can't live {ttl} seconds", f"say between 1 and {MAX_TTL}")
        if len(tags) > MAX_TAGS:
            raise InvalidError(f"{len(tags)} tags are too many", f"give at most {MAX_TAGS}")
        now = int(self._clock())
        secret = self._new_secret()
        token = Token(
            id=secret.id,
            network=network,
            secret_sha256=_hashed(secret.secret_text),
            created=now,
            expires=now + ttl,
            uses=uses,
            tags=tuple(dict.fromkeys(checked_tag(tag) for tag in tags)),
            approval=approval,
        )
        put = token.put(self._root)
        deed = token.deed(
            "token created",
            uses=str(uses or "any number"),
            tags=" ".join(token.tags),
            approval="needed" if approval else "",
        )
        await self._mirror.change(lambda: Change([absent(put.key)], [put], deed))
        _log.info("token created", extra={"network": network, "token": token.id})
        kv = self._mirror.key(put.key)
        return (Token.read(kv, self._root) if kv else token), secret

    def _new_secret(self) -> JoinToken:
        """Return a token; for a repeated request the same, which only who has the mesh root can work out."""
        request = caller().request
        if not request:
            return JoinToken.new(self._root.public_key)
        seed = bytes.fromhex(self._root.mac("token of request", request.encode()).decode())
        return JoinToken.derived(self._root.public_key, seed)

    def known(self, network: str = "") -> list[Token]:
        """Return the tokens there are (of one network), oldest first."""
        tokens = []
        for kv in self._mirror.held("tokens").values():
            try:
                tokens.append(Token.read(kv, self._root))
            except StoreCorruptError as error:
                _log.warning("a token in the store can't be read", extra={"reason": error.cause})
        wanted = [token for token in tokens if network in ("", token.network)]
        return sorted(wanted, key=lambda token: (token.created, token.id))

    def usable(self) -> list[Token]:
        """Return the tokens that let a host in now."""
        now = self._clock()
        return [
            token
            for token in self.known()
            if not token.revoked and now < token.expires and (not token.uses or token.uses_left)
        ]

    def authenticated(self, token_id: str, secret: str) -> tuple[Token, KeyValue]:
        """Return a token to someone who knows its secret; it may have expired or be used up.

        Raises:
            TokenError: unknown, wrong secret, or revoked.

        """
        kv = self._mirror.key(keys.token(token_id))
        if kv is None:
            raise TokenError(f"this mesh has no token {token_id!r}", _FIX)
        token = Token.read(kv, self._root)
        token.check_known_by(secret)
        return token, kv

    async def revoke(self, token_id: str) -> int:
        """Let no one in with it any more; return the revision. Hosts that joined with it stay.

        Raises:
            NotFoundError: there is no such token.

        """
        result = await self._mirror.change(lambda: self._revoked(token_id))
        _log.info("token revoked", extra={"token": token_id})
        return result.revision

    def _revoked(self, token_id: str) -> Change | None:
        kv = self._mirror.key(keys.token(token_id))
        if kv is None:
            raise NotFoundError(f"there is no token {token_id!r}", "see `meshctl token list`")
        token = Token.read(kv, self._root)
        if token.revoked:
            return None
        revoked = replace(token, revoked=True)
        return Change([unchanged(kv)], [revoked.put(self._root)], token.deed("token revoked"))

    async def sweep(self) -> None:
        """Forget tokens that expired a while ago. All controllers may do this at once."""
        while (await self._mirror.change(self._forgetting)).succeeded:
            pass

    def _forgetting(self) -> Change | None:
        horizon = self._clock() - KEPT_AFTER_EXPIRY
        old = [token for token in self.known() if token.expires < horizon][:MAX_OPS]
        if not old:
            return None
        held = [kv for token in old if (kv := self._mirror.key(keys.token(token.id)))]
        deed = Deed("tokens forgotten", details={"tokens": " ".join(token.id for token in old)})
        return Change([unchanged(kv) for kv in held], [Delete(kv.key) for kv in held], deed)
