"""One run: a mesh, its clients, a schedule of faults, and the verdict.

e1 e2 e3   etcd            c1 c2 c3   controllers          one Ethernet segment
clients    clients.py      h1 h2 h3   agent + fastpath, each pings the next, every packet counted
"""

import itertools
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import faults
from tests.faults.checker import HEALED, LIMIT, Violation, convergence, violations
from tests.faults.cluster import CLIENTS, CONTROLLERS, MEMBERS, Cluster
from tests.faults.history import OK, REFUSED, UNKNOWN, History, Recorder
from tests.netns.lab import ROOT, Lab, Process, until
from tests.netns.mesh import Loss, Member, Pinging

HOSTS = ("h1", "h2", "h3")
KEPT = ROOT / ".cache" / "faults"
# So many of each rule are shown.
SHOWN = 3


@dataclass
class Result:
    """What came of a run. kinds: how often each fault was done."""

    history: History
    violations: list[Violation]
    losses: list[Loss] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass
class Run:
    """A run to be.

    Args:
        seconds: how long harm is done.
        seed: of the schedule and of everybody's choices.
        only: kinds of faults; empty: all.
        agents: how many agents without hosts follow the map.
        members: how many of those who come and go are there at most; the pool has 125 addresses.
        hosts: hosts with a fastpath, whose packets are counted.
        program: what to run as the controllers.

    """

    seconds: float
    seed: int
    only: Sequence[str] = ()
    agents: int = 20
    members: int = 40
    hosts: Sequence[str] = HOSTS
    program: Sequence[str] = ("meshctl",)

    def judge(self) -> bool:
        """Run it, print what happens and what came of it; return whether all was well."""
        print(f"seed {self.seed}, {self.seconds:.0f} s", flush=True)
        result = self.carry_out()
        print(_table(result))
        for violation in _some(result.violations):
            print(violation)
        lost = sum(loss.lost for loss in result.losses)
        good = not result.violations and not lost
        print("all held" if good else f"FAILED: {len(result.violations)} violations, {lost} packets lost")
        return good

    def carry_out(self) -> Result:
        """Run it and return what came of it."""
        KEPT.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            lab = stack.enter_context(Lab(*MEMBERS, *CONTROLLERS, CLIENTS, *self.hosts))
            stack.enter_context(_logs_kept(lab, self.seed))
            cluster = stack.enter_context(Cluster(lab, list(self.program)))
            recorder = stack.enter_context(Recorder.open(self._file("faults")))
            hosts = self._hosts(cluster)
            streams = [
                Pinging(one, other.addresses[0]) for one, other in itertools.pairwise((*hosts, *hosts[:1]))
            ]
            clients = self._clients(cluster)
            kinds = self._harm(cluster, recorder, clients)
            until(lambda: "quiet" in clients.output, "clients have their answers", 120)
            time.sleep(LIMIT)
            losses = [stream.stop() for stream in streams]
            clients.kill(signal.SIGTERM)
            clients.wait()
            history = History.read(self._file("clients"), self._file("faults"))
            found = [*violations(history), *_behind(hosts, history), *_tracebacks(lab)]
            if found or any(loss.lost for loss in losses):
                _keep_logs(lab, self.seed)
            return Result(history, found, losses, kinds)

    # Who takes part.

    def _hosts(self, cluster: Cluster) -> list[Member]:
        members: list[Member] = []
        for name in self.hosts:
            token = cluster.meshctl("token create")["secret_token"]
            target = cluster.controllers[len(members) % len(cluster.controllers)].address
            host = cluster.lab[name]
            members.append(Member(host, host.start(f"meshctl join {target} --token {token} --foreground")))
        for member in members:
            until(lambda: member.status().get("working"), f"{member.host.name} works", 90)  # noqa: B023
        return members

    def _clients(self, cluster: Cluster) -> Process:
        lab = cluster.lab
        root = lab.directory / "root.pem"
        root.write_text(cluster.root())
        settings = {
            "seed": self.seed,
            "followers": self.agents,
            "members": self.members,
            "root": str(root),
            "directory": str(lab.directory / "agents"),
            "history": str(self._file("clients")),
            "controllers": [
                {
                    "name": one.name,
                    "join": f"{one.address}:7442",
                    "mesh": f"{one.address}:7443",
                    "socket": str(one.runtime / "controller.sock"),
                }
                for one in cluster.controllers
            ],
        }
        file = lab.directory / "clients.json"
        file.write_text(json.dumps(settings))
        clients = lab[CLIENTS].start([sys.executable, "-m", "tests.faults.clients", str(file)])
        until(lambda: "ready" in clients.output or not clients.running, "clients are there", 120)
        assert clients.running, clients.log
        return clients

    # What happens.

    def _harm(self, cluster: Cluster, recorder: Recorder, clients: Process) -> Counter[str]:
        dice = random.Random(self.seed)
        done: Counter[str] = Counter()
        began = time.monotonic()
        steps = faults.schedule(dice, self.seconds, self.only)
        for step in steps:
            with faults.FAULTS[step.kind](cluster, dice) as what:
                recorder.mark(f"begin: {what}")
                time.sleep(step.seconds)
            recorder.mark(f"end: {what}")
            if step is steps[-1]:
                recorder.mark(HEALED)
                clients.kill(signal.SIGUSR1)
            took = cluster.until_ready()
            done[step.kind] += 1
            at = time.monotonic() - began
            print(f"{at:6.0f} s  {what}, {step.seconds:.0f} s; up again in {took:.1f} s", flush=True)
            assert clients.running, clients.log
            time.sleep(step.pause)
        return done

    def _file(self, name: str) -> Path:
        return KEPT / f"{self.seed}-{name}.jsonl"


@contextmanager
def _logs_kept(lab: Lab, seed: int) -> Iterator[None]:
    """Keep all logs when the block fails."""
    try:
        yield
    except BaseException:
        _keep_logs(lab, seed)
        raise


def _keep_logs(lab: Lab, seed: int) -> None:
    directory = KEPT / f"{seed}-logs"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in (*lab.directory.glob("*.out"), *lab.directory.glob("*.err")):
        shutil.copy(file, directory)
    print(f"logs: {directory}")


def _behind(hosts: Sequence[Member], history: History) -> Iterator[Violation]:
    """Find hosts that do not hold what the agents without hosts hold last."""
    last = history.maps[-1]
    for member in hosts:
        status = member.status()
        if status.get("digest") != last.digest:
            what = f"{member.host.name} holds revision {status.get('revision')}"
            yield Violation("converged", what, (last, status.get("controller"), member.agent.log[-500:]))


def _tracebacks(lab: Lab) -> Iterator[Violation]:
    """Find what controllers, agents and clients did not expect."""
    for file in sorted(lab.directory.glob("*.err")):
        lines = [line for line in file.read_text(errors="replace").splitlines() if "Traceback" in line]
        if lines:
            yield Violation("words", f"{file.stem} was surprised", (lines[0][-1500:],))


def _some(found: Sequence[Violation]) -> Iterator[Violation]:
    times: Counter[str] = Counter()
    for violation in found:
        times[violation.rule] += 1
        if times[violation.rule] <= SHOWN:
            yield violation


def _table(result: Result) -> str:
    history = result.history
    joined = sorted(call.ended for call in history.of("join") if call.ok)
    pauses = (after - before for before, after in itertools.pairwise(joined))
    sent, lost, gap = _packets(result.losses)
    rows = {
        **{what: _outcomes(history, what) for what in ("join", "remove", "report", "token")},
        "maps": f"{len(history.maps)} taken over by {len({held.who for held in history.maps})} agents",
        "faults": ", ".join(f"{count} {kind}" for kind, count in sorted(result.kinds.items())),
        "longest time without a join": f"{max(pauses, default=0):.1f} s",
        "packets": f"{sent} sent, {lost} lost, longest gap {gap:.2f} s",
        "all agents in step after": f"{convergence(history):.2f} s",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _outcomes(history: History, what: str) -> str:
    times = Counter(call.outcome for call in history.of(what))
    return ", ".join(f"{times[outcome]} {outcome}" for outcome in (OK, UNKNOWN, REFUSED))


def _packets(losses: Sequence[Loss]) -> tuple[int, int, float]:
    lost = sum(loss.lost for loss in losses)
    return sum(loss.answered for loss in losses) + lost, lost, max((loss.gap for loss in losses), default=0)
