"""A TCP proxy before an HTTP server that delays, cuts, refuses or swallows, on command: `with BadProxy(port) as proxy:`.

It runs in a thread. Faults are data (`Fault`); `proxy.fault = REFUSE` holds for all requests from then on, those under way
included, until it is `NONE` again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal

_CHUNK_BYTES = 64 * 1024
_LOOK_S = 0.02
"""How often a swallowed connection looks whether the fault is over."""

Direction = Literal["request", "answer"]


@dataclass(frozen=True)
class Fault:
    """What happens to requests."""

    kind: Literal["none", "delay", "cut", "refuse", "black hole"] = "none"
    delay_s: float = 0.0
    """delay: each chunk of up to 64 KiB arrives so much later."""
    direction: Direction = "answer"
    """cut: of what."""
    after_bytes: int = 0
    """cut: so many bytes, counted from when the fault began, still pass."""
    times: int = 1
    """cut: so many connections; then it is over."""


NONE = Fault()
REFUSE = Fault("refuse")
"""503, as S3 answers under load."""
BLACK_HOLE = Fault("black hole")
"""Connections are accepted and nothing is read or answered."""
LOSE_ANSWER = Fault("cut", direction="answer")
"""The server does what it was asked for, and nobody hears of it."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What a server says before it has the body: no answer yet."""

_UNAVAILABLE = b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>Please reduce your request rate.</Message></Error>"
_REFUSAL = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
    % (
        len(_UNAVAILABLE),
        _UNAVAILABLE,
    )
)


class BadProxy:
    """`port` on 127.0.0.1 leads to `upstream_port`. `injected` counts by kind what was done to connections."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._fault, self._passed, self._cuts_left = NONE, 0, 0
        self.injected: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-proxy", daemon=True)

    def __enter__(self) -> BadProxy:
        self._thread.start()
        start = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault, self._passed, self._cuts_left = fault, 0, fault.times

    async def _close(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one connection --------------------------------------------------------------------------------------------
    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        try:
            pumps = [
                asyncio.ensure_future(self._pump(client, to_server, "request", to_client)),
                asyncio.ensure_future(self._pump(server, to_client, "answer", to_client)),
            ]
            _, unfinished = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in unfinished:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for writer in (to_client, to_server):
                writer.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        to_client: asyncio.StreamWriter,
    ) -> None:
        """Carries bytes until either side or a fault ends the connection."""
        while True:
            if self._fault.kind == "black hole":
                return await self._swallow()
            data = await source.read(_CHUNK_BYTES)
            if not data:
                return
            fault = self._fault
            if fault.kind == "black hole":
                return await self._swallow()
            if fault.kind == "refuse":
                self.injected["refuse"] += 1
                return await self._refuse(to_client)
            if fault.kind == "delay":
                self.injected["delay"] += 1
                await asyncio.sleep(fault.delay_s)
            is_cut = fault.kind == "cut" and fault.direction == direction and self._cuts_left
            if is_cut and data != _CONTINUE:
                left = fault.after_bytes - self._passed
                self._passed += len(data)
                if len(data) > left or not fault.after_bytes:
                    self._cuts_left -= 1
                    self.injected["cut"] += 1
                    sink.write(data[:left])
                    await sink.drain()
                    return
            sink.write(data)
            await sink.drain()

    async def _swallow(self) -> None:
        """Nothing passes, in either direction; when the fault is over, the connection is not usable any more."""
        self.injected["black hole"] += 1
        while self._fault.kind == "black hole":
            await asyncio.sleep(_LOOK_S)

    async def _refuse(self, to_client: asyncio.StreamWriter) -> None:
        to_client.write(_REFUSAL)
        await to_client.drain()
        to_client.write_eof()
        await asyncio.sleep(
            0.2
        )  # a body that is still arriving would otherwise reset the connection before the answer is read
