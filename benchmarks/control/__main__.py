"""Runs the scenario and keeps what it found.

    python -m benchmarks.control [--agents N] [--controllers N] [--spread] [--store etcd|sqlite] [--phases …]

Without --agents: 100, 1,000 and 10,000 at one of two controllers, 10,000 spread over three, 1,000 on SQLite.
What was found before of phases that are left out stays. The machine should have nothing else to do.
"""

import argparse
import resource
import tempfile
from pathlib import Path

import uvloop

from benchmarks.control import report
from benchmarks.control.rig import controllers
from benchmarks.control.scenario import PHASES, Row, Scenario, Size

# Agents, controllers, spread, store.
_RUNS = (
    (100, 2, False, "etcd"),
    (1_000, 2, False, "etcd"),
    (10_000, 2, False, "etcd"),
    (10_000, 3, True, "etcd"),
    (1_000, 1, False, "sqlite"),
)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control")
    parser.add_argument("--agents", type=int, help="how many; default: all runs, see above")
    parser.add_argument("--controllers", type=int, default=2, help="with two, the first one is killed")
    parser.add_argument("--spread", action="store_true", help="over all of them, not all at the first")
    parser.add_argument("--store", choices=["etcd", "sqlite"], default="etcd")
    parser.add_argument("--joins", type=int, default=1000, help="so many of the hosts join in full")
    parser.add_argument(
        "--phases", type=_phases, default=PHASES, metavar="PHASE,…", help=f"after joining: {','.join(PHASES)}"
    )
    said = parser.parse_args()
    one = (said.agents, said.controllers, said.spread, said.store)
    for agents, number, spread, store in [one] if said.agents else _RUNS:
        measure(Size(agents, said.joins, phases=said.phases, spread=spread), number, store)
        report.write()


def _phases(text: str) -> list[str]:
    phases = text.split(",")
    if unknown := set(phases) - set(PHASES):
        raise argparse.ArgumentTypeError(f"no phase {min(unknown)!r}: choose from {','.join(PHASES)}")
    return phases


def measure(size: Size, number: int, store: str) -> None:
    """Keep what one run on so many controllers finds, phase by phase.

    Raises:
        RuntimeError: an agent saw what it should not, or this process may not open enough files.

    """
    _allow_files(size.agents)

    def keep(row: Row) -> None:
        report.keep({"store": store, **row})

    with (
        tempfile.TemporaryDirectory(prefix="overmesh-bench-", dir="/dev/shm") as place,
        controllers(Path(place), number, store) as running,
    ):
        uvloop.run(Scenario(running, size, Path(place), keep).run())


def _allow_files(agents: int) -> None:
    """Allow this process, and those that it starts, a connection for each agent."""
    needed = agents + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        raise RuntimeError(f"{agents} agents need {needed} files; `ulimit -Hn` says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


if __name__ == "__main__":
    main()
