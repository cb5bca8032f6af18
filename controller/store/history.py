"""Keeps the history short enough to live with and long enough to resume from."""

from overmesh.controller.store.base import Store, head
from overmesh.errors import CompactedError

KEPT_REVISIONS = 10_000


async def trim_history(store: Store, keep: int = KEPT_REVISIONS) -> None:
    """Compact all but the last `keep` revisions; call it every minute or so.

    An agent or watch that is further behind starts from a snapshot. Several controllers may do this
    at once. The SQLite file stays as large as it was; the space is used again.

    Raises:
        StoreUnavailableError: try again next time.

    """
    latest = await head(store)
    if latest <= keep:
        return
    try:
        await store.compact(latest - keep)
    except CompactedError:
        return  # another controller was faster
