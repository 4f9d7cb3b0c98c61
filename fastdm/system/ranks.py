"""Who of how many: the processes of a job that torchrun or Slurm starts, and what they say to each other.

All of it goes through the host's memory, with gloo: a few numbers per iteration, small messages at checkpoints, and
images where a set is written. NCCL, whose place is in steps that share gradients, has nothing to do here: a program
that has initialised it gets a group of gloo besides.

A rank that waits for others notices when one of them is gone: that one's connection breaks, or it is silent. Nobody
waits for ever.
"""

import atexit
import json
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from fastdm.errors import FastDMError, OtherRankEnded
from fastdm.system.device import own_gpu

BEAT = 1.0
"""Seconds between two signs of life of a rank."""

SILENCE = 20.0
"""Seconds without one after which a rank that is waited for is taken to be gone."""

BROKEN_SILENCE = 5.0
"""The same once a connection broke: then one of them is."""

_GONE = "rank {} is gone: it was killed, or its machine or its network failed"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_MEETING_TIMEOUT = timedelta(minutes=5)
_STORE_TIMEOUT = timedelta(seconds=30)
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # who is gone is noticed before


class Ranks:
    """The ranks of a job as one of them sees them: number `rank` of `size`. This one is alone."""

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes what all have in common."""
        return self.rank == 0

    def exchange(self, value: Any, topic: str = "") -> list[Any]:
        """The values, anything that JSON holds, that all ranks give, by rank. topic: one for each thread."""
        return [value]

    def sums(self) -> "Sums":
        """Sums over the ranks, which are computed in the background."""
        raise NotImplementedError("one rank has nothing to sum")

    def assemble(self, part: Tensor, rows: Sequence[int]) -> Tensor:
        """The rows of all ranks, one after the other, on the CPU of every rank. rows: how many each has; part: this
        one's."""
        return part.detach().cpu().clone()

    def gather(self, part: Tensor, rows: Sequence[int]) -> Tensor | None:
        """The same at the first rank only, None at the others; part: on the CPU."""
        return part

    def end(self, error: BaseException) -> None:
        """Let the other ranks know why this one ends before they do; it waits for none of them any more."""

    def leave(self) -> None:
        """Part without an error, all ranks together."""


ALONE = Ranks()


class _Group(Ranks):
    """Ranks that are processes, connected by gloo for tensors and by a store, at the first one, for messages."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=_COLLECTIVE_TIMEOUT)
        self._store = self._open_store()
        self._session = 0
        self._why = ""  # this rank has ended, or another one has
        self._closed = threading.Event()
        self._numbers: dict[str, int] = {}
        self._stores = {"": self._store}  # by topic: who waits for an answer holds a connection
        self._beats: list[tuple[bytes, float]] = [(b"", time.monotonic())] * self.size
        self._lock = threading.Lock()
        self._life = threading.Thread(target=self._beat, args=(self._store.clone(),), daemon=True)
        self._life.start()
        atexit.register(self.close)  # a thread that is in C++ when Python ends would abort the process

    def _open_store(self) -> TCPStore:
        """A store at the first rank, at an address that all can reach."""
        hosts: list[str] = [""] * self.size
        dist.all_gather_object(hosts, socket.gethostname(), group=self.group)
        host = "localhost" if len(set(hosts)) == 1 else os.environ.get("MASTER_ADDR", hosts[0])
        place: list[Any] = [0]
        store: TCPStore | None = None
        if self.first:
            store = TCPStore(host, 0, None, True, timeout=_STORE_TIMEOUT, wait_for_workers=False)
            place = [store.port]
        dist.broadcast_object_list(place, group=self.group, group_src=0)
        if store is None:
            store = TCPStore(host, place[0], None, False, timeout=_STORE_TIMEOUT, wait_for_workers=False)
        return store

    def _beat(self, store: TCPStore) -> None:
        number = 0
        with suppress(RuntimeError):  # the first rank has left
            while not self._closed.is_set():
                store.set(f"beat/{self.rank}", str(number))
                number += 1
                self._closed.wait(BEAT)

    def close(self) -> None:
        """Give no more signs of life."""
        self._closed.set()
        self._life.join(BROKEN_SILENCE)

    # --- messages

    def exchange(self, value: Any, topic: str = "") -> list[Any]:
        number = self._numbers[topic] = self._numbers.get(topic, 0) + 1
        keys = [f"{self._session}/{topic}/{number}/{rank}" for rank in range(self.size)]
        if topic not in self._stores:
            self._stores[topic] = self._reached(lambda: self._store.clone())
        store = self._stores[topic]
        self._reached(lambda: store.set(keys[self.rank], json.dumps(value)))
        self.wait(lambda: store.check(keys))
        return [json.loads(text) for text in self._reached(lambda: store.multi_get(keys))]

    def begin_session(self) -> None:
        self._session += 1
        self._why = ""
        self._numbers.clear()

    def end(self, error: BaseException) -> None:
        if self._why and not isinstance(error, OtherRankEnded):
            return
        text = str(error) or type(error).__name__
        self._why = text if isinstance(error, OtherRankEnded) else f"rank {self.rank} has ended: {text}"
        with suppress(OtherRankEnded):
            self._reached(lambda: self._store.set(f"{self._session}/ended/{self.rank}", self._why))

    def linger(self) -> None:
        """Wait, at the first rank, with which messages end, until all others have read why or are gone."""
        since = time.monotonic()
        with suppress(OtherRankEnded):
            while self.first and time.monotonic() - since < SILENCE:
                if all(self._note(rank) or self._is_gone(rank) for rank in range(self.size)):
                    break
                time.sleep(0.05)

    def leave(self) -> None:
        keys = [f"{self._session}/left/{rank}" for rank in range(self.size)]
        self._reached(lambda: self._store.set(keys[self.rank], ""))
        if self.first:
            self.wait(lambda: self._store.check(keys))

    # --- tensors

    def sums(self) -> "Sums":
        return Sums(self)

    def assemble(self, part: Tensor, rows: Sequence[int]) -> Tensor:
        whole = part.new_empty(sum(rows), *part.shape[1:], device="cpu")
        shares = whole.split(list(rows))
        shares[self.rank].copy_(part.detach())
        for rank, share in enumerate(shares):
            self.finish(partial(dist.broadcast, share, group=self.group, group_src=rank, async_op=True))
        return whole

    def gather(self, part: Tensor, rows: Sequence[int]) -> Tensor | None:
        if not self.first:
            self._transfer(partial(dist.send, part, group=self.group, group_dst=0))
            return None
        whole = part.new_empty(sum(rows), *part.shape[1:])
        shares = whole.split(list(rows))
        shares[0].copy_(part)
        for rank, share in enumerate(shares[1:], 1):
            self._transfer(partial(dist.recv, share, group=self.group, group_src=rank))
        return whole

    def _transfer(self, call: Callable[[], Any]) -> None:
        """Send or receive. In a thread, since gloo does not say when that is complete."""
        done: Future[None] = Future()

        def transfer() -> None:
            try:
                done.set_result(call())
            except RuntimeError as error:
                done.set_exception(error)

        threading.Thread(target=transfer, daemon=True).start()
        self.wait(done.done)
        try:
            done.result()
        except RuntimeError as error:
            raise self._broken(error) from error

    def begin_sum(self, row: Tensor) -> Any:
        """Begin to sum a row over the ranks, in place."""
        try:
            return dist.all_reduce(row, group=self.group, async_op=True)
        except RuntimeError as error:
            raise self._broken(error) from error

    def finish(self, begin: Callable[[], Any]) -> None:
        """Begin a collective, and wait for it."""
        try:
            work = begin()
            self.wait(work.is_completed)
            work.wait()
        except RuntimeError as error:
            raise self._broken(error) from error

    # --- who is gone

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until something is there; FastDMError, naming it, if a rank has ended meanwhile."""
        pause, looked = 1e-4, time.monotonic()
        while not self._reached(ready):
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
            if time.monotonic() - looked > BEAT / 2:
                self._look(SILENCE)
                looked = time.monotonic()

    def _look(self, silence: float) -> None:
        """Raise OtherRankEnded for a rank that has ended."""
        if self._why:
            raise OtherRankEnded(self._why)
        for rank in range(self.size):
            if rank != self.rank and (note := self._note(rank)):
                raise OtherRankEnded(note)
        silences = [0.0 if rank == self.rank else self._silence(rank) for rank in range(self.size)]
        if max(silences) > silence:
            self._why = _GONE.format(silences.index(max(silences)))
            raise OtherRankEnded(self._why)

    def _note(self, rank: int) -> str:
        """Why a rank has ended, if it has."""
        key = f"{self._session}/ended/{rank}"
        note: str = self._reached(lambda: self._store.get(key).decode() if self._store.check([key]) else "")
        return note

    def _silence(self, rank: int) -> float:
        """Seconds since a new sign of life of a rank was seen."""
        key = f"beat/{rank}"
        with self._lock:
            beat = self._reached(lambda: self._store.get(key) if self._store.check([key]) else b"")
            if beat != self._beats[rank][0]:
                self._beats[rank] = beat, time.monotonic()
            return time.monotonic() - self._beats[rank][1]

    def _is_gone(self, rank: int) -> bool:
        """Whether a rank is silent now that gave signs of life: one that starts slowly will want to read why."""
        return self._silence(rank) > BROKEN_SILENCE and self._beats[rank][0] != b""

    def _broken(self, error: RuntimeError) -> FastDMError:
        """What is to be said where a connection broke: who it is that has ended, as soon as that is known."""
        self._beats = [(beat, time.monotonic()) for beat, _ in self._beats]
        since = time.monotonic()
        while time.monotonic() - since < SILENCE:
            try:
                self._look(BROKEN_SILENCE)
            except FastDMError as found:
                return found
            time.sleep(0.1)
        return OtherRankEnded(f"the connection to another rank broke: {str(error).splitlines()[0]}")

    def _reached(self, call: Callable[[], Any]) -> Any:
        """What a call to the store gives; the store ends with the first rank."""
        try:
            return call()
        except RuntimeError as error:
            raise OtherRankEnded(_GONE.format(0)) from error


class Sums:
    """Sums over the ranks of one row of numbers after another, float32, first in, first out.

    Adding one never waits for the device: its numbers are copied to the host in the background.
    """

    def __init__(self, ranks: _Group) -> None:
        self._ranks = ranks
        self._copies: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._works: deque[tuple[Tensor, Any]] = deque()

    def __len__(self) -> int:
        return len(self._copies) + len(self._works)

    def add(self, row: Tensor) -> None:
        """Begin to sum a row, which all ranks add."""
        event = None
        if row.is_cuda:
            host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True).copy_(row, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(row.device))
        else:
            host = row.detach().clone()
        self._copies.append((host, event))
        self._begin()

    def _begin(self, *, wait: bool = False) -> None:
        while self._copies and (wait or self._copies[0][1] is None or self._copies[0][1].query()):
            host, event = self._copies.popleft()
            if event is not None:
                event.synchronize()
            self._works.append((host, self._ranks.begin_sum(host)))
            wait = False

    def take(self) -> Tensor:
        """The oldest sum, on the CPU, once all ranks have added to it."""
        self._begin(wait=not self._works)
        row, work = self._works.popleft()
        self._ranks.finish(lambda: work)
        return row


_known: tuple[Any, _Group] | None = None
_depth = 0


@contextmanager
def shared() -> Iterator[Ranks]:
    """The ranks among which the work of the block is shared: those of PyTorch's process group, else this one alone.

    All ranks enter it, in the same order. If one leaves it with an error, the others learn why as soon as they wait.
    """
    global _known, _depth
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield ALONE
        return
    if _known is None or _known[0] is not dist.group.WORLD:
        _known = dist.group.WORLD, _Group()
    ranks = _known[1]
    if _depth == 0:
        ranks.begin_session()
    _depth += 1
    try:
        yield ranks
        if _depth == 1:
            ranks.leave()
    except BaseException as error:
        ranks.end(error)
        if _depth == 1:
            ranks.linger()
        raise
    finally:
        _depth -= 1


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes within the block, if torchrun or Slurm's srun has started some, and take one GPU each.

    A process group that is there already is taken as it is. Raises FastDMError where the others cannot be reached.
    """
    launched = None if not dist.is_available() or dist.is_initialized() else _launched(os.environ)
    if launched is None:
        with shared() as ranks:
            yield ranks
        return
    os.environ.update(launched)
    if torch.cuda.is_available():
        torch.cuda.set_device(own_gpu())
    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING_TIMEOUT))
        # What torchrun's last attempt has left in the store would lead nowhere.
        store = PrefixStore(f"attempt {os.environ.get(_RESTARTS, '0')}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_MEETING_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise FastDMError(
            f"rank {launched['RANK']} of {launched['WORLD_SIZE']} cannot reach the others ({error})"
        ) from error
    try:
        with shared() as ranks:
            yield ranks
    except OtherRankEnded:
        raise  # to end the connections would be to wait for it
    except BaseException:
        _disconnect()
        raise
    else:
        _disconnect()


def _disconnect() -> None:
    global _known
    if _known is not None:
        _known[1].close()
    _known = None
    dist.destroy_process_group()


def was_restarted() -> bool:
    """Whether torchrun has started this process in place of one that failed (--max-restarts)."""
    return os.environ.get(_RESTARTS, "0") != "0"


def _launched(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The variables of torchrun, or those that Slurm's stand for; None for a process that is alone.

    Under Slurm only what srun starts counts: the script round it has the job's variables too.
    """
    if "RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {name: environment[name] for name in names if name in environment}
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
        tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        port = 20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "LOCAL_WORLD_SIZE": tasks[0] if tasks else "1",
            "MASTER_ADDR": environment.get("MASTER_ADDR", _first_node(nodes)),
            "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
        }
    return None


def _first_node(nodes: str) -> str:
    """The first of Slurm's list of nodes: "gpu[003-005,9],login" → "gpu003"."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    return nodes if found is None else found[1] + (found[2] or "") + found[3]
