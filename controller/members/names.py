"""What may be a name: of a node, a network, a tag."""

import re

from overmesh.errors import InvalidError

MAX_HOST_ID = 256

_TAG = re.compile(r"[a-z0-9][a-z0-9._:/=-]{0,62}")
_INSTANCE = re.compile(r"[0-9a-f]{1,64}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def checked_label(what: str, text: str) -> str:
    """Return the text in lower case if it is a DNS label (RFC 1123, 2.1).

    Args:
        what: "node name" or "network name", for the error.
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


def checked_host_id(text: str) -> str:
    """Return what tells a machine from others, which is shown as the machine says it.

    Raises:
        InvalidError: it can't be shown, or is too long.

    """
    if len(text) <= MAX_HOST_ID and text.isprintable():
        return text
    raise InvalidError(
        f"a host id of {len(text)} characters can't be used",
        f"set `host_id` in the agent's configuration to at most {MAX_HOST_ID} printable characters",
    )


def checked_instance(text: str) -> str:
    """Return what tells one run of an agent from others.

    Raises:
        InvalidError: it is not what an agent makes.

    """
    if not text or _INSTANCE.fullmatch(text):
        return text
    raise InvalidError(
        f"{text[:MAX_HOST_ID]!r} can't tell one run of an agent from others", "install it anew"
    )


def checked_tag(text: str) -> str:
    """Return a tag in lower case, such as "rack:7".

    Raises:
        InvalidError: it can't be one.

    """
    tag = text.lower()
    if _TAG.fullmatch(tag):
        return tag
    raise InvalidError(
        f"{text!r} can't be a tag", "use 1 to 63 letters, digits and . _ : / = -, a letter or digit first"
    )
