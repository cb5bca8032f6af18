import asyncio
import logging
import socket
import urllib.request
from collections.abc import Iterable

import pytest
from prometheus_client import Metric

from overmesh.errors import ConfigError
from overmesh.metrics import Gathered, gauge, registry, served
from tests.etcd import free_port


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read(), "utf-8")


async def test_numbers_are_gathered_on_the_loop_when_somebody_asks() -> None:
    at_work = asyncio.current_task()
    asked: list[int] = []

    async def gather() -> Iterable[Metric]:
        assert asyncio.get_running_loop() is at_work.get_loop()  # type: ignore[union-attr]
        asked.append(1)
        return [gauge("overmesh_things", "How many", {("a",): 2, ("b",): 3}, "node")]

    numbers, port = registry(), free_port()
    numbers.register(Gathered(gather))
    assert not asked
    with served(f"127.0.0.1:{port}", numbers):
        text = await asyncio.to_thread(scrape, port)
    assert 'overmesh_things{node="b"} 3.0' in text
    assert "process_cpu_seconds_total" in text
    assert asked == [1]
    with served(f"127.0.0.1:{port}", numbers):  # the port was given back
        pass


@pytest.mark.parametrize("at", ["", "7444", "host:", "127.0.0.1:0", "127.0.0.1:70000", ":7444"])
def test_what_is_no_address_is_refused_with_the_fix(at: str) -> None:
    with pytest.raises(ConfigError) as refused, served(at, registry()):
        pass
    assert refused.value.fix == "say 127.0.0.1:7444, or off"


def test_off_serves_nothing() -> None:
    with served("off", registry()):
        pass


def test_a_port_in_use_is_said_and_no_reason_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        at = f"127.0.0.1:{other.getsockname()[1]}"
        with caplog.at_level(logging.WARNING), served(at, registry()):
            pass
    assert "metrics are not served" in caplog.text
