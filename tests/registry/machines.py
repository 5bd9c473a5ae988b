"""Machines of a federation on one: network namespaces with addresses of their own.

They have no names: a namespace is gone with the last process that is in it or holds it
open, so that nothing is left of one however a test ends.  Their bridge lies in a
namespace of its own, and nothing leads from there to anywhere else.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.waiting import SECONDS

_NEWNET = 0x40000000  # CLONE_NEWNET


def enter(path: str) -> None:
    """Put this thread, and those that it starts, into the namespace at ``path``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        _call("setns", handle, _NEWNET)
    finally:
        os.close(handle)


def _call(name: str, *words: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@dataclass(frozen=True)
class Machine:
    """A namespace; ``public`` is an address of the gateway's, not of its own."""

    handle: int
    number: int

    @property
    def path(self) -> str:
        """Where other processes of this user find it."""
        return f"/proc/{os.getpid()}/fd/{self.handle}"

    @property
    def ipv4(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd77::{self.number}"

    @property
    def public(self) -> str:
        return f"198.51.100.{self.number}"

    def command(self, words: Sequence[str]) -> list[str]:
        """``words`` in the namespace."""
        return ["nsenter", f"--net={self.path}", "--", *words]

    def traffic(self) -> tuple[int, int]:
        """Bytes that have come in, and gone out, all headers included."""
        line = ["ip", "-s", "-j", "link", "show", "eth0"]
        (link,) = json.loads(_run(self.command(line)))
        counts = link["stats64"]
        return counts["rx"]["bytes"], counts["tx"]["bytes"]


def _run(words: Sequence[str]) -> str:
    done = subprocess.run(
        words, check=True, capture_output=True, text=True, timeout=SECONDS
    )
    return done.stdout


def _namespace() -> int:
    """A handle of a new namespace."""
    results: list[int | OSError] = []

    def make() -> None:  # a thread's own: this process stays where it is
        try:
            _call("unshare", _NEWNET)
            results.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (handle,) = results
    if isinstance(handle, OSError):
        raise handle
    return handle


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many of them, from number 1, that reach one another over a bridge.

    Raises OSError or CalledProcessError where this user may not make them.
    """
    with ExitStack() as stack:
        handles = [_namespace() for _ in range(count + 1)]
        for handle in handles:
            stack.callback(os.close, handle)
        hub, *others = (Machine(h, n) for n, h in enumerate(handles))
        _bridge(hub, others)
        stack.enter_context(_forwarding(hub))
        yield others


def _bridge(hub: Machine, others: Sequence[Machine]) -> None:
    def ip(machine: Machine, words: str) -> None:
        _run(machine.command(["ip", *words.split()]))

    ip(hub, "link set lo up")
    ip(hub, "link add br0 type bridge")
    ip(hub, "addr add 10.77.0.254/24 dev br0")
    for each in others:
        ip(hub, f"addr add {each.public}/32 dev br0")
    ip(hub, "link set br0 up")
    for each in others:
        port = f"port{each.number}"
        ip(hub, f"link add {port} type veth peer name eth0 netns {each.path}")
        ip(hub, f"link set {port} master br0 up")
        ip(each, "link set lo up")
        ip(each, f"addr add {each.ipv4}/24 dev eth0")
        ip(each, f"addr add {each.ipv6}/64 dev eth0 nodad")
        ip(each, "link set eth0 up")
        ip(each, "route add 198.51.100.0/24 via 10.77.0.254")


# --------------------------------------------------------------------------- gateway

PORTS = range(8890, 8900)


@contextmanager
def _forwarding(hub: Machine) -> Iterator[None]:
    """What comes to a public address goes on to its machine, as behind NAT."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    def work() -> None:
        enter(hub.path)  # sockets stay in the namespace in which they are made
        asyncio.set_event_loop(loop)
        loop.run_until_complete(_listen())
        ready.set()
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        if not ready.wait(SECONDS):
            raise OSError("the gateway does not come up")
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)


async def _listen() -> None:
    for port in PORTS:
        await asyncio.start_server(_forward, "0.0.0.0", port)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    public, port = writer.get_extra_info("sockname")
    inside = f"10.77.0.{public.rpartition('.')[2]}"
    try:
        there = await asyncio.open_connection(inside, port)
    except OSError:  # nobody listens there yet
        writer.close()
        return
    await asyncio.gather(_pass_on(reader, there[1]), _pass_on(there[0], writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
