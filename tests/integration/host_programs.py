"""Small programs that test_hosts.py runs on its hosts: `python -m tests.integration.host_programs NAME ARGUMENT...`."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

PORT = 7000
_MEASURED_BYTES = 2_000_000


def look_around(ray_address: str) -> None:
    """What a task sees on each host, in the order of the hosts' names."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=1)
    def look() -> dict:
        own = sorted(path.name for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("of-*"))
        return {"name": socket.gethostname(), "address": ray.util.get_node_ip_address(), "own": own}

    ray.init(address=ray_address, log_to_driver=False)
    nodes = sorted(ray.nodes(), key=lambda node: node["NodeManagerHostname"])
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    seen = ray.get([look.options(scheduling_strategy=strategy).remote() for strategy in there], timeout=50)
    for node, found in zip(nodes, seen, strict=True):
        found["ray_name"] = node["NodeManagerHostname"]
    print(json.dumps(seen), flush=True)
    os._exit(0)


def watch(ray_address: str, node_id: str) -> None:
    """Says when Ray has given the node up."""
    import ray

    ray.init(address=ray_address, log_to_driver=False)
    said_alive = False
    while any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
        if not said_alive:
            print("alive", flush=True)
            said_alive = True
        time.sleep(0.05)
    print(time.time(), flush=True)
    os._exit(0)


def all_reduce(rank: str) -> None:
    import torch
    import torch.distributed

    torch.distributed.init_process_group("gloo", rank=int(rank), world_size=2)
    total = torch.tensor([int(rank) + 1])
    torch.distributed.all_reduce(total)
    print("sum", int(total), flush=True)
    torch.distributed.barrier()


def receive_ticks(address: str) -> None:
    """Prints the seconds between the ticks that arrive."""
    connection, last = _accept(address), time.monotonic()
    while connection.recv(1):
        now = time.monotonic()
        print(now - last, flush=True)
        last = now


def send_ticks(address: str) -> None:
    with socket.create_connection((address, PORT)) as connection:
        for _ in range(50):
            connection.sendall(b"x")
            time.sleep(0.1)


def connect(address: str, timeout_s: str) -> None:
    try:
        socket.create_connection((address, PORT), timeout=float(timeout_s))
        print("connected")
    except TimeoutError:
        print("timed out")


def echo(address: str) -> None:
    """For each connection: answers a byte with a byte, then takes what comes and says so with a byte."""
    with socket.create_server((address, PORT)) as server:
        print("listening", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(1))
                left = _MEASURED_BYTES
                while left:
                    left -= len(connection.recv(min(left, 1 << 16)))
                connection.sendall(b"x")


def measure(address: str) -> None:
    """Round trip and throughput to the host that runs `echo`."""
    with socket.create_connection((address, PORT)) as connection:
        began = time.monotonic()
        connection.sendall(b"x")
        connection.recv(1)
        round_trip_s = time.monotonic() - began
        began = time.monotonic()
        connection.sendall(bytes(_MEASURED_BYTES))
        connection.recv(1)
        took_s = time.monotonic() - began
    rate = _MEASURED_BYTES * 8 / took_s / 1e6
    print(json.dumps({"round_trip_ms": round(round_trip_s * 1e3, 2), "mbit_per_s": round(rate, 1)}), flush=True)


def _accept(address: str) -> socket.socket:
    with socket.create_server((address, PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
    return connection


PROGRAMS = {f.__name__: f for f in (look_around, watch, all_reduce, receive_ticks, send_ticks, connect, echo, measure)}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
