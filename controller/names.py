"""What may be a name: of a node, a network, a tag."""

import re

from overmesh.errors import InvalidError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def checked_label(what: str, text: str) -> str:
    """Return the text in lower case if it is a DNS label (RFC 1123, 2.1).

    Args:
        what: "node name", "network name", "tag": for the error.
        text: as the user gave it.

    Raises:
        InvalidError: it is not.

    """
    label = text.lower()
    if _LABEL.fullmatch(label):
        return label
    raise InvalidError(
        f"{text!r} can't be a {what}",
        "use 1 to 63 letters, digits and hyphens, without a hyphen at either end",
    )
