"""The doctor's checks between the processes of a run: who reaches whom, whose clock, whose disk.

Processes meet at the store where a run's processes meet, and then talk over sockets of their own: Torch's
backends connect all pairs when they start, and do not say which pair could not.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import socketserver
import statistics
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from daybreak.train.doctor import MEETING, Check, worst
from daybreak.train.world import Place

WAIT = timedelta(seconds=120)
"""Processes of a large job do not start at one moment."""
PATIENCE = 10.0
"""Seconds after which a neighbour counts as out of reach."""
PAYLOAD = bytes(4 * 2**20)
CLOCK = 1.0
"""Seconds by which clocks may differ: times in logbooks and of files are compared across machines."""
_SIZE, _TIME = struct.Struct("!q"), struct.Struct("!d")


@dataclass(frozen=True)
class Link:
    """What one process saw of another."""

    seconds: float
    """There and back."""
    bytes_per_second: float
    ahead: float
    """Seconds by which the other's clock is ahead."""


def together(place: Place, own: Sequence[Check], out: Path | None) -> list[Check]:
    """Rank 0 gets the checks of all; the others get their own back."""
    try:
        store = _meet(place)
    except (distributed.DistError, ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        told = f"rank {place.rank} of {place.size} could not meet the others at {place.address}: {reason}"
        remedy = "start as many processes as the world size says; open the port between the machines"
        return [*own, Check(MEETING, "problem", told, remedy)]
    with _Listener(place) as address:
        _tell(store, "address", place, address)
        links = _links(_hear(store, "address", place), place)
        _tell(store, "checks", place, [dataclasses.asdict(check) for check in own])
        _tell(store, "links", place, links)
        every = _hear(store, "links", place)  # all are done: nobody stops listening before
    sight = [] if out is None else [_shared(store, place, out)]
    sums = _sum(store, place) if not _failures(every) else None
    if place.rank != 0:
        _tell(store, "done", place, True)
        return list(own)
    checks = {rank: [Check(**one) for one in found] for rank, found in _hear(store, "checks", place).items()}
    _tell(store, "done", place, True)
    _hear(store, "done", place)  # whoever keeps the store leaves last
    return [*merged(checks), reach(every), clocks(every), *sight, *([] if sums is None else [sums])]


def merged(checks: Mapping[int, Sequence[Check]]) -> list[Check]:
    """One check of several processes' checks of the same name: the worst, with the ranks that say so."""
    found = []
    for name in dict.fromkeys(check.name for own in checks.values() for check in own):
        named = {rank: check for rank, own in checks.items() for check in own if check.name == name}
        state = worst(list(named.values()))
        those = {rank: check for rank, check in named.items() if check.state == state}
        first = those[min(those)]
        everywhere = len(those) == len(checks)
        where = "" if everywhere else f" ({_ranks(those)})"
        found.append(Check(name, state, first.found + where, first.remedy))
    return found


def reach(links: Mapping[int, Mapping[int, Link | str]]) -> Check:
    """Whether every process reaches every other one; a string is why it does not."""
    failures = _failures(links)
    if failures:
        told = "; ".join(f"rank {one} does not reach rank {other}: {why}" for one, other, why in failures[:5])
        more = f"; and {len(failures) - 5} more pairs" if len(failures) > 5 else ""
        remedy = "open all ports between these machines, or name the network in GLOO_SOCKET_IFNAME"
        return Check("reachability", "problem", told + more, remedy)
    good = [link for row in links.values() for link in row.values() if isinstance(link, Link)]
    slowest = max(good, key=lambda link: link.seconds)
    speeds = sorted(link.bytes_per_second for link in good)
    return Check(
        "reachability",
        "ok",
        f"all {len(good)} ways between {len(links)} processes; at most {1e3 * slowest.seconds:.2f} ms there "
        f"and back, {speeds[0] / 2**20:,.0f} to {speeds[-1] / 2**20:,.0f} MiB/s",
    )


def clocks(links: Mapping[int, Mapping[int, Link | str]]) -> Check:
    """Whether the clocks agree with rank 0's, within `CLOCK`."""
    ahead = {rank: link.ahead for rank, link in links.get(0, {}).items() if isinstance(link, Link)}
    if not ahead:
        return Check("clocks", "warning", "not compared: rank 0 reaches nobody")
    rank = max(ahead, key=lambda one: abs(ahead[one]))
    told = f"rank {rank}'s differs most from rank 0's, by {1e3 * abs(ahead[rank]):.1f} ms"
    if abs(ahead[rank]) <= CLOCK:
        return Check("clocks", "ok", told)
    return Check("clocks", "warning", told, "set the machines' clocks by NTP (chrony, systemd-timesyncd)")


def look(address: tuple[str, int]) -> Link:
    """What there is to see of the process that listens at `address`. Raises `OSError` if it does not."""
    with socket.create_connection(address, timeout=PATIENCE) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tries = []
        for _ in range(5):
            began, clock = time.perf_counter(), time.time()
            theirs = _ask(line, b"")
            taken = time.perf_counter() - began
            tries.append((taken, theirs - (clock + taken / 2)))
        began = time.perf_counter()
        _ask(line, PAYLOAD)
        speed = len(PAYLOAD) / (time.perf_counter() - began)
    return Link(statistics.median(taken for taken, _ in tries), speed, min(tries)[1])


def _ask(line: socket.socket, payload: bytes) -> float:
    line.sendall(_SIZE.pack(len(payload)) + payload)
    return float(_TIME.unpack(_read(line, _TIME.size))[0])


def _read(line: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = line.recv(min(size - len(parts), 2**20))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)


class _Answers(socketserver.BaseRequestHandler):
    """Takes what it is sent, and says what time it is."""

    def handle(self) -> None:
        try:
            while True:
                _read(self.request, _SIZE.unpack(_read(self.request, _SIZE.size))[0])
                self.request.sendall(_TIME.pack(time.time()))
        except OSError:
            return  # the other side has seen enough


class _Listener:
    """Answers the others, at a port of its own, on the network that leads to the meeting place."""

    def __init__(self, place: Place) -> None:
        host, _, port = place.address.rpartition(":")
        family = socket.getaddrinfo(host, int(port))[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # nothing is sent; it only chooses the way
            own = probe.getsockname()[0]
        kind = type("_Server", (socketserver.ThreadingTCPServer,), {"address_family": family})
        self._server = kind((own, 0), _Answers)
        self._server.daemon_threads = True

    def __enter__(self) -> tuple[str, int]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _meet(place: Place) -> Store:
    way = "env://" if place.agent else f"tcp://{place.address}"
    found = rendezvous(way, rank=place.rank, world_size=place.size, timeout=WAIT)
    store: Store = next(found)[0]
    store.set_timeout(WAIT)
    return PrefixStore("doctor", store)


def _tell(store: Store, what: str, place: Place, value: Any) -> None:
    store.set(f"{what}/{place.rank}", json.dumps(value, default=dataclasses.asdict))


def _hear(store: Store, what: str, place: Place) -> dict[int, Any]:
    """Every rank's, as soon as it is there."""
    found = {rank: json.loads(store.get(f"{what}/{rank}")) for rank in range(place.size)}
    if what != "links":
        return found
    return {
        rank: {int(other): Link(**seen) if isinstance(seen, dict) else seen for other, seen in row.items()}
        for rank, row in found.items()
    }


def _links(addresses: Mapping[int, Any], place: Place) -> dict[int, Link | str]:
    """Everybody begins with the next rank, so that nobody is asked by all at once."""
    links: dict[int, Link | str] = {}
    for step in range(1, place.size):
        other = (place.rank + step) % place.size
        try:
            links[other] = look(tuple(addresses[other]))
        except OSError as error:
            host, port = addresses[other]
            links[other] = f"{error.strerror or error} ({host}:{port})"
    return links


def _failures(links: Mapping[int, Mapping[int, Link | str]]) -> list[tuple[int, int, str]]:
    return [
        (one, other, seen)
        for one, row in links.items()
        for other, seen in row.items()
        if isinstance(seen, str)
    ]


def _shared(store: Store, place: Place, out: Path) -> Check:
    """Whether what rank 0 writes beside the run's folder is there for all, each at its own `out`."""
    folder = next(one for one in (out, *out.absolute().parents) if one.is_dir())
    if place.rank == 0:
        file = folder / f".daybreak-doctor-{time.time_ns()}"
        try:
            file.touch()
        except OSError as error:
            _tell(store, "file", place, None)
            return Check("shared folder", "problem", f"rank 0 cannot write to {folder}: {error.strerror}")
        _tell(store, "file", place, file.name)
        _tell(store, "sees", place, True)
        try:
            blind = [rank for rank, sees in _hear(store, "sees", place).items() if not sees]
        finally:
            file.unlink(missing_ok=True)
        if not blind:
            return Check("shared folder", "ok", f"all see what rank 0 writes to {folder}")
        told = f"ranks {', '.join(map(str, blind))} do not see what rank 0 writes to {folder}"
        return Check("shared folder", "problem", told, "give --out on a file system that all machines share")
    name = json.loads(store.get("file/0"))
    until = time.monotonic() + PATIENCE  # network file systems look anew only every few seconds
    while name is not None and not (folder / name).exists() and time.monotonic() < until:
        time.sleep(0.2)
    _tell(store, "sees", place, name is not None and (folder / name).exists())
    return Check("shared folder", "ok", "")


def _sum(store: Store, place: Place) -> Check:
    """One sum over all processes, by the backend that a run would take."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cuda", place.local_rank) if backend == "nccl" else torch.device("cpu")
    group = PrefixStore("sum", store)
    try:
        limit = timedelta(seconds=6 * PATIENCE)
        distributed.init_process_group(
            backend, store=group, rank=place.rank, world_size=place.size, timeout=limit
        )
        values = torch.ones(2**20, device=device)
        distributed.all_reduce(values)
        began = time.perf_counter()
        distributed.all_reduce(values)
        right = values[0].item() == float(place.size) ** 2
        taken = time.perf_counter() - began
        distributed.destroy_process_group()
    except (distributed.DistError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "name the network in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO tells more"
        return Check("sums", "problem", f"{backend}: {reason}", remedy)
    told = f"4 MiB over {place.size} processes by {backend} in {1e3 * taken:.1f} ms"
    return Check("sums", "ok" if right else "problem", told if right else f"{backend} adds up wrongly")


def _ranks(those: Mapping[int, Any]) -> str:
    """`rank 3`, `ranks 1, 2 and 5 more`."""
    ranks = sorted(those)
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"ranks {', '.join(map(str, ranks[:8]))}{more}"
