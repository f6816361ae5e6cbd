"""Brokers are killed and started again: streams do not notice, and an asyncio server goes on as it is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from pathlib import Path

import pytest

import hvsock
from hvsock.fabric import client
from hvsock.registry import Registry
from tests.support import sample

assert sys.platform == "linux"

from .processes import PATIENCE_SECONDS, BrokerProcess

KILLS = sample(3, 300)
STREAMS = 4
"""Connections with traffic in both directions, all the while."""
MOST_BYTES = 50_000
"""Of one write."""


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _traffic(seed: int, guest: str, service_id: str, stop: asyncio.Event) -> int:
    """Send random bytes until `stop`, and check what comes back; returns how many there were."""
    reader, writer = await hvsock.open_connection(("parent", service_id), partition=guest)
    sent, received = hashlib.sha256(), hashlib.sha256()
    chance, count = random.Random(seed), 0

    async def send() -> None:
        nonlocal count
        while not stop.is_set():
            data = chance.randbytes(chance.randrange(1, MOST_BYTES))
            sent.update(data)
            count += len(data)
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write_eof()

    async def receive() -> None:
        while data := await reader.read(1 << 16):
            received.update(data)

    await asyncio.gather(send(), receive())
    writer.close()
    await writer.wait_closed()
    assert received.digest() == sent.digest(), "the stream is not whole"
    return count


async def _serve_and_restart(broker: BrokerProcess, service_id: str, guest: str) -> int:
    server = await hvsock.start_server(_echo, ("children", service_id), partition=broker.host)
    (listener,) = server.sockets
    before = listener.fileno(), os.fstat(listener.fileno())[:3]
    stop = asyncio.Event()
    async with server, asyncio.timeout(PATIENCE_SECONDS * KILLS):
        streams = [asyncio.create_task(_traffic(seed, guest, service_id, stop)) for seed in range(STREAMS)]
        for _ in range(KILLS):
            await asyncio.sleep(0.05)
            await asyncio.to_thread(broker.kill)
            with pytest.raises(OSError, match="no broker"):
                await hvsock.open_connection(("parent", service_id), partition=guest)
            await asyncio.sleep(0.05)
            await asyncio.to_thread(broker.start)
            for stream in streams:
                assert not stream.done()
            reader, writer = await hvsock.open_connection(("parent", service_id), partition=guest)
            writer.write(b"one more")
            writer.write_eof()
            assert await reader.read() == b"one more"
            writer.close()
            await writer.wait_closed()
        stop.set()
        counts = await asyncio.gather(*streams)
        assert (listener.fileno(), os.fstat(listener.fileno())[:3]) == before
    return sum(counts)


@pytest.mark.timeout(sample(60, 3600))
def test_streams_and_servers_go_on(tmp_path: Path) -> None:
    """Every byte of each stream comes back once, and the server's descriptor is the one that it was."""
    broker = BrokerProcess(str(tmp_path / "fabric"))
    try:
        with Registry(os.path.join(broker.folder, "registry")) as registry:
            service = registry.register("Restarted")
        guest = client.call(broker.host, "partition.create", name="vm", kind="vm")["folder"]
        moved = asyncio.run(_serve_and_restart(broker, service.id, guest))
    finally:
        broker.close()
    assert moved > 1_000_000
    print(f"{moved >> 20} MiB through {KILLS} kills")
