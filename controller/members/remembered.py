"""What this controller knows to be true, against a store that says otherwise.

    verified earlier ──┐
    own disk ──────────┼──► the store lacks it, or has something older? ──► put back, and said aloud
    an agent has seen ─┘

Revocations matter beyond the life of a process: whoever can write to the store while no controller runs
could take them away. So they are kept in state_dir too, as a cache: without it the agents still know.
"""

import asyncio
import binascii
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NoReturn

from overmesh.controller.audit import Deed
from overmesh.controller.members.revocations import Revocations
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put, absent, unchanged
from overmesh.controller.trust import Identity
from overmesh.controller.view import Changes, NetworkView
from overmesh.errors import InvalidError, NotFoundError, RecordError, StoreUnavailableError
from overmesh.files import as_bytes, as_text, replace_file
from overmesh.model import Revocation, revoked_key
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import MAX_WITHHELD

FILE = "revocations.json"
# So soon the store is put right.
PAUSE = 1.0
# With a comparison each.
_AT_ONCE = 50
_NAMED = 5

_log = logging.getLogger("overmesh.controller")

Kept = Mapping[str, Mapping[str, bytes]]


class Remembered:
    """Keeps what is known, and puts the store right.

    Args:
        mirror, revocations: the parts of this controller.
        state_dir: where the file is.
        clock: unix seconds.

    """

    def __init__(
        self, mirror: Mirror, revocations: Revocations, state_dir: Path, clock: Callable[[], float]
    ) -> None:
        self._mirror = mirror
        self._revocations = revocations
        self._file = state_dir / FILE
        self._clock = clock
        # Network, peer map key -> encoded Signed, which the store may lack.
        self._offered: dict[tuple[str, str], bytes] = {}
        # Of networks that the store does not have, perhaps only for now.
        self._elsewhere: Kept = {}
        self._dirty = True
        # One thread: a write that nobody waits for any more is finished before the next one begins.
        self._disk = ThreadPoolExecutor(1)
        mirror.on_change(self._changed)

    def _changed(self, _network: str, changes: Changes) -> None:
        self._dirty = self._dirty or any(key.startswith(revoked_key("")) for key in changes)

    # Where it is known from.

    def load(self) -> None:
        """Compare what this controller knew when it ran last with what the store says now."""
        known = _read(self._file)
        for network, kept in known.items():
            for key, signed in kept.items():
                self._offer(network, key, signed)
        here = {view.name for view in self._mirror.networks}
        self._elsewhere = {network: kept for network, kept in known.items() if network not in here}
        if self._offered:
            _log.error(
                "the store has lost revocations since this controller ran last: "
                "restored from a backup, or tampered with; they are put back",
                extra={"revocations": len(self._offered)},
            )

    def witnessed(self, identity: Identity, items: Sequence[mesh_pb2.Item]) -> None:
        """Take revocations that a node has seen, and that its map lacks.

        Raises:
            InvalidError: more than any agent sends.

        """
        if len(items) > MAX_WITHHELD:
            raise InvalidError(f"more than {MAX_WITHHELD} revocations in one report")
        found = [item.key for item in items if self._offer(identity.network, item.key, item.signed)]
        if found:
            _log.error(
                "a node has seen revocations that the store has lost; they are put back",
                extra=self._mirror.view(identity.network).log_fields(identity.node_id)
                | {"revocations": len(found)},
            )

    def _offer(self, network: str, key: str, signed: bytes) -> bool:
        """Note a revocation that is genuine, in force, and not in use here; tell whether it is."""
        try:
            view = self._mirror.view(network)
            record = view.check(key, signed)
        except (NotFoundError, RecordError):
            return False
        wanted = isinstance(record, Revocation) and record.in_force(self._clock())
        if not wanted or view.records.get(key) == record:
            return False
        self._offered[network, key] = signed
        return True

    # Putting the store right.

    async def keep(self) -> NoReturn:
        """Put right what is wrong, and keep what is known, for as long as this runs."""
        while True:
            await asyncio.sleep(PAUSE)
            try:
                await self.restore()
            except StoreUnavailableError as error:
                _log.warning("the store can't be put right now", extra={"reason": error.cause})
            await self.save()

    async def restore(self) -> None:
        """Give back to the store what it has lost, and take from it what is void."""
        for view in self._mirror.networks:
            restored: list[str] = []
            while lacking := self._lacking(view):
                if not (await self._mirror.change(partial(self._restoring, view, lacking))).succeeded:
                    break
                restored += lacking
            if restored:
                self._tell(view, restored)
        await self._revocations.clear_void()

    def _lacking(self, view: NetworkView) -> dict[str, bytes]:
        """Return some of what the store lacks: peer map key -> encoded Signed."""
        lacking = dict(islice(view.wronged.items(), _AT_ONCE))
        offers = (offer for offer in list(self._offered.items()) if offer[0][0] == view.name)
        for (network, key), signed in offers:
            if len(lacking) == _AT_ONCE:
                break
            if _is_news(view, key, signed):
                lacking[key] = signed
            else:
                del self._offered[network, key]
        return lacking

    def _restoring(self, view: NetworkView, lacking: Mapping[str, bytes]) -> Change | None:
        compares, ops = [], []
        for item, signed in lacking.items():
            key = keys.of_item(view.name, item)
            kv = self._mirror.key(key)
            if kv is None or kv.value != signed:
                compares.append(unchanged(kv) if kv else absent(key))
                ops.append(Put(key, signed))
        deed = Deed("records put back", view.name, details={"records": " ".join(lacking)})
        return Change(compares, ops, deed) if ops else None

    def _tell(self, view: NetworkView, restored: Sequence[str]) -> None:
        names = ", ".join(_title(view, key) for key in restored[:_NAMED])
        more = f" and {len(restored) - _NAMED} more" if len(restored) > _NAMED else ""
        reason = f"had lost, or got older versions of, {names}{more}; put back"
        self._mirror.notices.note(view.name, "records", reason)
        _log.error(
            "the store was rolled back or tampered with: records are put back",
            extra={"network": view.name, "records": f"{names}{more}"},
        )

    # On disk.

    async def save(self) -> None:
        """Write the revocations that are known, if they are others than were written."""
        if not self._dirty:
            return
        self._dirty = False
        here = {view.name: _revocations(view) for view in self._mirror.networks}
        try:
            data = _encoded({**self._elsewhere, **here})
            await asyncio.get_running_loop().run_in_executor(self._disk, replace_file, self._file, data)
        except OSError as error:
            self._dirty = True
            _log.warning("revocations can't be kept", extra={"file": self._file, "reason": error.strerror})

    async def end(self) -> None:
        """Write once more, as this controller stops."""
        self._dirty = True
        await self.save()
        self._disk.shutdown()


def _is_news(view: NetworkView, key: str, signed: bytes) -> bool:
    try:
        return view.check(key, signed) != view.records.get(key)
    except RecordError:
        return False


def _title(view: NetworkView, key: str) -> str:
    """Return what people call a record: the revocation of web1."""
    record = view.records.get(key)
    if isinstance(record, Revocation):
        return f"the revocation of {record.name or record.node_id}"
    return key


def _revocations(view: NetworkView) -> dict[str, bytes]:
    return {
        key: view.map.items[key] for key, record in view.records.items() if isinstance(record, Revocation)
    }


def _encoded(kept: Kept) -> bytes:
    texts = {
        network: {key: as_text(signed) for key, signed in records.items()}
        for network, records in kept.items()
    }
    return json.dumps(texts, indent=0).encode() + b"\n"


def _read(file: Path) -> Kept:
    """Return what is in the file; nothing, and a warning, when it is damaged."""
    try:
        texts: dict[str, dict[str, str]] = json.loads(file.read_bytes())
        return {
            network: {key: as_bytes(text) for key, text in records.items()}
            for network, records in texts.items()
        }
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        _log.warning("the revocations on disk can't be read; those of the store count", extra={"file": file})
    return {}
