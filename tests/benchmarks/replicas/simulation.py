"""A discrete simulation of replicas that batch continuously; an event is an engine step, as long as it was measured."""

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct


class Costs(Struct, frozen=True):
    """What an engine step costs, as measured on one server."""

    first: float
    """Seconds of a prompt's prefill, with its way through HTTP."""
    steps: Mapping[int, float]
    """Seconds of a decode step by the number of streams in it."""

    def step(self, streams: int) -> float:
        """Seconds of a step, linear between the measured numbers of streams and beyond the last two."""
        known = sorted(self.steps)
        if streams <= known[0] or len(known) == 1:
            return self.steps[known[0]]
        upper = next((number for number in known if number >= streams), known[-1])
        lower = known[known.index(upper) - 1]
        slope = (self.steps[upper] - self.steps[lower]) / (upper - lower)
        return self.steps[lower] + slope * (streams - lower)


class Arrival(NamedTuple):
    """A request: when it comes, in seconds, and how many tokens it is answered with."""

    moment: float
    tokens: int


class Answered(NamedTuple):
    """What became of a request, in seconds: until its first token, and until its last."""

    first: float
    last: float


class _Request:
    def __init__(self, arrival: Arrival) -> None:
        self.arrival, self.left = arrival, arrival.tokens
        self.first = self.last = 0.0


class _Replica:
    def __init__(self) -> None:
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.active = False

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)


Choose = Callable[[Sequence[int], int], int]
"""(load of each replica, number of the request) -> the replica that gets it."""


def in_turns(loads: Sequence[int], number: int) -> int:
    """Round robin, as a balancer that knows nothing."""
    return number % len(loads)


def least_loaded(loads: Sequence[int], number: int) -> int:
    """The replica with the fewest requests, as nginx's least_conn or an endpoint picker by queue."""
    return min(range(len(loads)), key=lambda replica: (loads[replica], (replica - number) % len(loads)))


def poisson(rate: float, seconds: float, tokens: int, seed: int) -> list[Arrival]:
    """Requests at random moments, `rate` a second on average, each answered with `tokens`."""
    draw, moment, found = random.Random(seed), 0.0, list[Arrival]()
    while (moment := moment + draw.expovariate(rate)) < seconds:
        found.append(Arrival(moment, tokens))
    return found


class Limits(NamedTuple):
    """What each replica and the machine have."""

    slots: int = 8
    cores: int | None = None
    """Cores that all replicas share; None for a core each."""


def simulate(
    costs: Costs,
    arrivals: Sequence[Arrival],
    replicas: int,
    choose: Choose,
    limits: Limits = Limits(),  # noqa: B008
) -> list[Answered]:
    """Let `replicas` answer all arrivals; returns what became of each, in order.

    A step prefills what was admitted and decodes one token of each stream. With fewer cores than busy replicas, each
    step takes longer by that ratio, as at its begin.
    """
    run = _Simulation(costs, replicas, limits)
    requests = [_Request(arrival) for arrival in arrivals]
    run.events += [(arrival.moment, 0, number) for number, arrival in enumerate(arrivals)]
    heapq.heapify(run.events)
    while run.events:
        now, kind, number = heapq.heappop(run.events)
        if kind:
            run.end(run.servers[number], now)
        else:
            number, request = choose([each.load for each in run.servers], number), requests[number]
            run.servers[number].waiting.append(request)
        if kind or not run.servers[number].active:
            run.begin(number, now)
    return [Answered(request.first, request.last) for request in requests]


class _Simulation:
    def __init__(self, costs: Costs, replicas: int, limits: Limits) -> None:
        self.servers = [_Replica() for _ in range(replicas)]
        self.events: list[tuple[float, int, int]] = []
        self._costs, self._limits = costs, limits

    def begin(self, number: int, now: float) -> None:
        """Admit what has a slot and begin a step, if there is anything to compute."""
        server = self.servers[number]
        old = len(server.running)
        while server.waiting and len(server.running) < self._limits.slots:
            server.running.append(server.waiting.popleft())
        server.active = bool(server.running)
        if server.active:
            admitted = len(server.running) - old
            seconds = admitted * self._costs.first + (self._costs.step(old) if old else 0.0)
            busy = sum(each.active for each in self.servers)
            crowded = max(1.0, busy / self._limits.cores) if self._limits.cores else 1.0
            heapq.heappush(self.events, (now + seconds * crowded, 1, number))

    def end(self, server: "_Replica", now: float) -> None:
        """Give each stream the token of the step."""
        for request in server.running:
            since = now - request.arrival.moment
            request.first = request.first or since
            request.left, request.last = request.left - 1, since
        server.running = [request for request in server.running if request.left]
