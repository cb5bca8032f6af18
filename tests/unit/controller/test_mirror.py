import asyncio
from functools import partial
from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from overmesh import trace
from overmesh.controller.mirror import Change
from overmesh.controller.store import keys
from overmesh.controller.store.base import Delete, Put, absent, unchanged
from overmesh.model import Controller
from tests.unit.controller import lab

HERE = Controller("c1", ("192.0.2.1:7443",), ("192.0.2.1:7442",))


async def test_what_is_the_whole_meshs_is_in_the_map_of_every_network(tmp_path: Path) -> None:
    async with lab.mesh(tmp_path) as mesh:
        signed = lab.ROOT.sign(HERE)
        result = await mesh.store.txn([], [Put(keys.controller("c1"), signed)])
        await mesh.mirror.reached(result.revision)
        later = await mesh.membership.create_network("later")
        maps = [mesh.mirror.view("mesh").map, later.map]
        assert [of.items["controller/c1"] for of in maps] == [signed, signed]
        assert later.records["controller/c1"] == HERE

        result = await mesh.store.txn([], [Delete(keys.controller("c1"))])
        await mesh.mirror.reached(result.revision)
        assert not any("controller/c1" in of.items for of in maps)
        assert (await mesh.membership.create_network("last")).map.items.keys() == {"network"}


async def test_changes_run_side_by_side_and_those_of_one_key_take_turns(tmp_path: Path) -> None:
    async with lab.mesh(tmp_path) as mesh:
        planned = []

        def write(key: str) -> Change:
            planned.append(key)
            kv = mesh.mirror.key(key)
            return Change([unchanged(kv) if kv else absent(key)], [Put(key, f"{len(planned)}".encode())])

        wanted = ["x/one"] * 40 + [f"x/{number}" for number in range(40)]
        results = await asyncio.gather(
            *(mesh.mirror.change(partial(write, keys.PREFIX + key)) for key in wanted)
        )
        assert len({result.revision for result in results}) == 80
        held = mesh.mirror.key(f"{keys.PREFIX}x/one")
        assert held
        assert held.version == 40
        # Nobody raced against itself: who had to wait planned twice, all others once.
        assert len(planned) == 80 + 39


async def test_a_trace_ends_with_its_change_whatever_that_changed(tmp_path: Path) -> None:
    async with lab.mesh(tmp_path) as mesh:
        with trace.tracing("http://127.0.0.1:4318", "test", InMemorySpanExporter()), trace.span("forget"):
            await mesh.mirror.change(lambda: Change([], [Delete(keys.token("nobody"))]))
        assert not mesh.mirror._traced
