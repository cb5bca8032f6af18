"""What must never be, found in a history: each violation with the events that prove it.

    one_holder   an address is never two nodes', in any map and in what joiners are told
    tokens       a token that was confirmed is known everywhere, and lets in as many as it is good for
    forward      an agent's revision never goes back
    one_story    a revision is one map: whoever holds it holds the same
    kept         a change that was acknowledged is in every map from its revision on, and at the end
    gone         a removed node is in no map from the removal's revision on, and at the end
    reads        a controller that has confirmed a removal does not know the node any more
    words        a refusal says why, in words of ours
    converged    within LIMIT seconds of the end of the last fault, or of the last change if that was answered
                 later, every agent holds the same map

A call without an answer may have happened at any time since, or not: it proves nothing and excuses what
only it could have done. Pure: a history in, violations out.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from tests.faults.history import REFUSED, Call, Held, History

LIMIT = 5.0
HEALED = "healed"
CHANGES = "join", "remove", "report"
_UNKNOWN_TOKEN = "this mesh has no token"
# How a call ends that our code did not expect to end.
_UNEXPECTED = ("unexpected error", " failed: INTERNAL", " failed: UNKNOWN")


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be. proof: the events that show it, oldest first."""

    rule: str
    what: str
    proof: tuple[object, ...]

    def __str__(self) -> str:
        return "\n    ".join((f"{self.rule}: {self.what}", *map(str, self.proof)))


def violations(history: History) -> list[Violation]:
    """Return everything in a history that must not be."""
    lives = _lives(history)
    rules: Sequence[Callable[[History, Lives], Iterator[Violation]]] = (
        one_holder, tokens, forward, one_story, kept, gone, reads, words, converged,
    )  # fmt: skip
    return [violation for rule in rules for violation in rule(history, lives)]


# Members, as clients know them.


@dataclass(slots=True)
class Life:
    """A membership that was confirmed, and how it ended: leaving, an attempt; left, a confirmed one."""

    join: Call
    leaving: Call | None = None
    left: Call | None = None
    back: Call | None = None

    @property
    def safe_until(self) -> float:
        """Until when nobody had wanted its end."""
        return self.leaving.began if self.leaving else math.inf

    @property
    def back_from(self) -> float:
        """From when on the same node may be a member again."""
        return self.back.began if self.back else math.inf


Lives = Mapping[str, Sequence[Life]]


def _lives(history: History) -> Lives:
    """Return every node's memberships, in order: one client asks for all of a node's, one after the other."""
    lives: defaultdict[str, list[Life]] = defaultdict(list)
    for call in history.calls:
        of_node = lives[call.node]
        if call.what == "join":
            if of_node and of_node[-1].leaving:
                of_node[-1].back = of_node[-1].back or call
            if call.ok:
                of_node.append(Life(call))
        if call.what == "remove" and call.outcome != REFUSED and of_node:
            of_node[-1].leaving = of_node[-1].leaving or call
            if call.ok:
                of_node[-1].left = of_node[-1].left or call
    return lives


# One address, one node.


def one_holder(history: History, lives: Lives) -> Iterator[Violation]:
    """Find addresses that two nodes had at a time."""
    answered: defaultdict[str, list[Life]] = defaultdict(list)
    for life in (life for of_node in lives.values() for life in of_node):
        for address in life.join.said["addresses"]:
            answered[address].append(life)
    for address, holders in answered.items():
        for one, other in combinations(holders, 2):
            if _at_once(one, other):
                yield Violation("one_holder", f"{address} was given twice", (one.join, other.join))
    for held, agent in _replayed(history):
        if held.joined:
            yield from _shared(held, agent)


def _at_once(one: Life, other: Life) -> bool:
    if one.join.node == other.join.node:
        return False
    return one.safe_until > other.join.ended and other.safe_until > one.join.ended


def _shared(held: Held, agent: "_Agent") -> Iterator[Violation]:
    times = Counter(address for addresses in agent.addresses.values() for address in addresses)
    for address, count in times.items():
        if count > 1:
            holders = sorted(node for node, of in agent.addresses.items() if address in of)
            yield Violation("one_holder", f"{address} is that of {' and '.join(holders)}", (held,))


def tokens(history: History, _lives: Lives) -> Iterator[Violation]:
    """Find tokens that let in too many, or that a controller does not know."""
    let_in: defaultdict[str, dict[str, Call]] = defaultdict(dict)
    for call in history.of("join"):
        if call.ok:
            let_in[call.said["token"]].setdefault(call.node, call)
    for made in history.of("token"):
        joins = let_in[made.said.get("token", "")]
        if 0 < made.said["uses"] < len(joins):
            what = f"a token for {made.said['uses']} let in {len(joins)}"
            yield Violation("tokens", what, (made, *joins.values()))
    made_at = {made.said["token"]: made for made in history.of("token") if made.ok}
    for call in history.of("join"):
        of = made_at.get(call.said["token"])
        if of and _UNKNOWN_TOKEN in call.error and of.ended <= call.began:
            yield Violation("tokens", f"{call.controller} does not know a token", (of, call))


# One story.


def forward(history: History, _lives: Lives) -> Iterator[Violation]:
    """Find agents that went back."""
    for maps in _by_agent(history).values():
        for before, after in pairwise(maps):
            if after.revision < before.revision:
                what = f"{after.who} went back from {before.revision} to {after.revision}"
                yield Violation("forward", what, (before, after))


def one_story(history: History, _lives: Lives) -> Iterator[Violation]:
    """Find revisions that are not the same map for all."""
    first: dict[int, Held] = {}
    for held in history.maps:
        same = first.setdefault(held.revision, held)
        if same.digest != held.digest:
            yield Violation("one_story", f"revision {held.revision} is two different maps", (same, held))


# What holds stays.


def kept(history: History, lives: Lives) -> Iterator[Violation]:
    """Find acknowledged joins and reports that are missing in a map."""
    members = [life for of_node in lives.values() for life in of_node]
    reports = _reports(history)
    for agent_maps in _by_agent(history).values():
        agent, due = _Agent(), _Due(members)
        for held in agent_maps:
            agent.take(held)
            for life in due.missing(held, agent.addresses):
                yield Violation("kept", f"{held.who} does not have {life.join.node}", (life.join, held))
            yield from _stale(reports, held, agent)
    for held, agent in _in_the_end(history):
        yield from _lost(members, reports, held, agent)


def _lost(
    members: Sequence[Life], reports: Mapping[str, "_Reports"], held: Held, agent: "_Agent"
) -> Iterator[Violation]:
    """Find what is missing in the last map of an agent, whatever its revision."""
    for life in members:
        addresses = agent.addresses.get(life.join.node)
        if not life.leaving and addresses != tuple(life.join.said["addresses"]):
            what = f"in the end {held.who} does not have {life.join.node}"
            yield Violation("kept", what, (life.join, held))
    for node, of_node in reports.items():
        if of_node.contradicts(agent.places.get(node), math.inf, math.inf):
            what = f"in the end {held.who} has {node} at {agent.places.get(node)}"
            yield Violation("kept", what, (*of_node.calls[-3:], held))
    for subject, why in held.refused.items():
        yield Violation("kept", f"in the end {held.who} refuses {subject}: {why}", (held,))


class _Due:
    """Which members an agent's map has to have, as its revision grows."""

    def __init__(self, members: Sequence[Life]) -> None:
        self._coming = sorted(members, key=lambda life: -life.join.revision)
        self._due: dict[str, Life] = {}

    def missing(self, held: Held, there: Mapping[str, object]) -> list[Life]:
        while self._coming and self._coming[-1].join.revision <= held.revision:
            life = self._coming.pop()
            self._due[life.join.node] = life
        missing = [self._due[node] for node in self._due.keys() - there.keys()]
        for life in missing:  # told once, or in order
            del self._due[life.join.node]
        return [life for life in missing if life.safe_until > held.at]


@dataclass(slots=True)
class _Reports:
    """What one node has said of where it is, in the order in which it said so."""

    calls: list[Call] = field(default_factory=list)
    acked: list[Call] = field(default_factory=list)

    def contradicts(self, places: tuple[str, ...] | None, revision: float, at: float) -> bool:
        """Tell whether a map of this revision, held at this moment, can't be what the node has said."""
        last = bisect_right(self.acked, revision, key=lambda call: call.revision)
        if not last:
            return False
        known = self.acked[last - 1]
        since = bisect_left(self.calls, known.began, key=_began)
        possible = self.calls[since : bisect_right(self.calls, at, key=_began)]
        return all(places != tuple(call.said["places"]) for call in possible)


def _began(call: Call) -> float:
    return call.began


def _reports(history: History) -> dict[str, _Reports]:
    reports: defaultdict[str, _Reports] = defaultdict(_Reports)
    for call in history.of("report"):
        if call.outcome != REFUSED:
            reports[call.node].calls.append(call)
        if call.ok:
            reports[call.node].acked.append(call)
    return reports


def _stale(reports: Mapping[str, _Reports], held: Held, agent: "_Agent") -> Iterator[Violation]:
    # What a node says grows: a map that has it right stays right until it speaks again.
    for node, of_node in reports.items():
        places = agent.places.get(node)
        if of_node.contradicts(places, held.revision, held.at):
            what = f"{held.who} has {node} at {places}"
            yield Violation("kept", what, (*of_node.calls[-3:], held))


# What is gone stays gone.


def gone(history: History, lives: Lives) -> Iterator[Violation]:
    """Find removed nodes that are in a map."""
    removed = {node: [life for life in of_node if life.left] for node, of_node in lives.items()}
    for held, agent in _replayed(history):
        for node in agent.addresses.keys() & removed.keys():
            for life in removed[node]:
                if life.left and 0 < life.left.revision <= held.revision and life.back_from > held.at:
                    yield Violation("gone", f"{held.who} still has {node}", (life.left, held))
    for held, agent in _in_the_end(history):
        for node, of_node in lives.items():
            last = of_node[-1] if of_node else None
            if last and last.left and not last.back and node in agent.addresses:
                yield Violation("gone", f"in the end {held.who} still has {node}", (last.left, held))


def reads(history: History, lives: Lives) -> Iterator[Violation]:
    """Find controllers that know a node whose removal they have confirmed."""
    for look in history.of("look"):
        for life in lives.get(look.node, ()):
            left = life.left
            if left is None or not look.ok or not look.said["found"] or left.controller != look.controller:
                continue
            if left.ended <= look.began and life.back_from > look.ended:
                what = f"{look.controller} still knows {look.node}"
                yield Violation("reads", what, (left, look))


def words(history: History, _lives: Lives) -> Iterator[Violation]:
    """Find calls that ended in a way nobody had thought of."""
    for call in history.calls:
        if any(sign in call.error for sign in _UNEXPECTED):
            yield Violation("words", f"{call.what} failed without a reason", (call,))


# All is well again.


def converged(history: History, _lives: Lives) -> Iterator[Violation]:
    """Find out whether all agents came to hold the same map in time."""
    took = convergence(history)
    if took <= LIMIT:
        return
    last = {held.who: held for held in history.maps}
    healed = [mark for mark in history.marks if mark.what == HEALED]
    when = f"after {took:.1f} s" if took < math.inf else "never"
    yield Violation("converged", f"all agents held the same map {when}", (*healed, *last.values()))


def convergence(history: History) -> float:
    """Return the seconds until all agents held the same map for good; inf: never.

    They count from the end of the last fault; when a change was answered only after that, from then.
    """
    changes = (call for what in CHANGES for call in history.of(what) if call.ok)
    over = max((mark.at for mark in history.marks if mark.what == HEALED), default=math.inf)
    over = max((over, *(call.ended for call in changes)))
    holding: dict[str, Held] = {}
    everybody = {held.who for held in history.maps}
    settled = math.inf
    for held in history.maps:
        holding[held.who] = held
        together = len({(one.revision, one.digest) for one in holding.values()}) == 1
        settled = held.at if holding.keys() == everybody and together else math.inf
    return max(0.0, settled - over) if over < math.inf else math.inf


# Maps, put together again.


@dataclass(slots=True)
class _Agent:
    """What one agent holds."""

    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def take(self, held: Held) -> None:
        self.addresses.update(held.joined)
        self.places.update(held.moved)
        for node in held.gone:
            self.addresses.pop(node, None)
            self.places.pop(node, None)


def _replayed(history: History) -> Iterator[tuple[Held, _Agent]]:
    """Yield every map that was held, whole; the agent is good until the next."""
    agents: defaultdict[str, _Agent] = defaultdict(_Agent)
    for held in history.maps:
        agents[held.who].take(held)
        yield held, agents[held.who]


def _in_the_end(history: History) -> Iterator[tuple[Held, _Agent]]:
    """Yield the last map of every agent."""
    last = {held.who: (held, agent) for held, agent in _replayed(history)}
    yield from last.values()


def _by_agent(history: History) -> Mapping[str, Sequence[Held]]:
    maps: defaultdict[str, list[Held]] = defaultdict(list)
    for held in history.maps:
        maps[held.who].append(held)
    return maps
