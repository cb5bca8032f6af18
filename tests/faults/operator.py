"""What the operator of an etcd does, through the member of this host: standard library alone.

    python -m tests.faults.operator health | stuff | free '{"size": 1048576}'

stuff    writes until etcd says that its space is used up (the alarm NOSPACE)
free     deletes that again, forgets the history, gives the space back, and ends the alarm
"""

import base64
import json
import sys
import urllib.error
import urllib.request
from typing import Any

_URL = "http://127.0.0.1:2379"
_STUFF = "/stuff/"
_MEMBERS = 3


def ask(path: str, request: dict[str, Any] | None = None, timeout: float = 10) -> dict[str, Any]:
    """Return etcd's answer, from its JSON gateway; what it says of an error too."""
    data = None if request is None else json.dumps(request).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{_URL}{path}", data), timeout=timeout) as answer:
            result: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        result = json.load(error)
    except OSError as error:
        result = {"error": str(error)}
    return result


def text(value: str) -> str:
    """Return bytes as the gateway takes them."""
    return base64.b64encode(value.encode()).decode()


def stuff() -> dict[str, Any]:
    """Write until there is no space left."""
    for number in range(100):
        answer = ask("/v3/kv/put", {"key": text(f"{_STUFF}{number}"), "value": text("x" * (1 << 20))})
        if "error" in answer:
            return answer
    return {"error": "there is still space"}


def free() -> dict[str, Any]:
    """Do what etcd's manual says ("Space quota")."""
    end = _STUFF[:-1] + chr(ord(_STUFF[-1]) + 1)
    ask("/v3/kv/deleterange", {"key": text(_STUFF), "range_end": text(end)})
    now = ask("/v3/kv/range", {"key": text(_STUFF)})["header"]["revision"]
    ask("/v3/kv/compaction", {"revision": now, "physical": True}, 30)
    ask("/v3/maintenance/defragment", {}, 30)
    return {"revision": now}


def disarm() -> dict[str, Any]:
    """End the alarm."""
    alarms = ask("/v3/maintenance/alarm", {"action": "GET"}).get("alarms", [])
    for alarm in alarms:
        ask("/v3/maintenance/alarm", {**alarm, "action": "DEACTIVATE"})
    return {"alarms": len(alarms)}


COMMANDS = {"health": lambda: ask("/health", timeout=3), "stuff": stuff, "free": free, "disarm": disarm}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]]()))
