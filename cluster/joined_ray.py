"""A Ray cluster that was there before the run: joined by its address, given back as it was found."""

from __future__ import annotations

import logging
import socket

from zerofleet.cluster.spec import NodeSpec
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.storage import Storage

_REACH_TIMEOUT_S = 10.0


def check_reachable(address: str) -> None:
    """Before anything is prepared, since Ray itself goes on trying for minutes. Raises UserError when nobody listens there."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and port.isascii() and int(port) < 2**16):
        raise _cannot_join(address, ValueError("it is not host:port"))
    try:
        socket.create_connection((host, int(port)), _REACH_TIMEOUT_S).close()
    except OSError as error:
        raise _cannot_join(address, error) from error


def _cannot_join(address: str, error: Exception) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(
        f"no Ray cluster can be joined at cluster.address={address} ({reason}): give host:port of its head, and "
        "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN when it wants a token"
    )


class JoinedRay:
    """As own_ray.OwnRay, without starting or ending anything of the cluster's own.

    Its token, when it wants one, is taken from Ray's own variables (`RAY_AUTH_MODE=token`, `RAY_AUTH_TOKEN`).
    """

    zygote_path = ""
    """Each agent starts its own zygote."""

    def __init__(self, node: NodeSpec, address: str) -> None:
        self._namespace, self._address = node.namespace, address

    def join(self) -> None:
        """Makes this process Ray's driver, and ends the agents that a killed driver of this run left there; their snapshots
        stay. Raises UserError when there is no such cluster."""
        import ray

        try:
            ray.init(
                address=self._address,
                namespace=self._namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _cannot_join(self._address, error) from error
        from zerofleet.cluster.ray_nodes import end_agents_of

        end_agents_of(self._namespace)

    def stop(self, storage: Storage, log_folder: str | None) -> None:
        """The cluster stays. Its logs are its owner's."""
