"""The local Ray of a driver: it starts in a thread, while the driver does other things, and is ended whatever happened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from zerofleet.cluster.local import HeadRequest, LocalRay, LocalRayError, new_folder, own_environment
from zerofleet.cluster.spec import NodeSpec
from zerofleet.cluster.zygote_process import ZygoteSpec
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.storage import Storage


class OwnRay:
    """A local Ray, and beside it the node's zygote: its imports take longer than Ray. To be made before Ray is imported."""

    def __init__(self, node: NodeSpec, num_cpus: int, num_gpus: int) -> None:
        own_environment()
        self._namespace, folder = node.namespace, new_folder()
        zygote = ZygoteSpec(node.preload, node.model_type, node.accelerator, f"{folder}/zygote.log")
        request = HeadRequest(folder, node.run, ProcessId.own(), num_cpus, num_gpus, zygote)
        self.zygote_path = request.zygote_path
        """Where the zygote waits for agents."""
        self._starting = ThreadPoolExecutor(1, "local-ray").submit(LocalRay.start, request)
        self._is_ending = False

    def join(self) -> None:
        """Makes this process Ray's driver; waits for the start. Raises LocalRayError, ConnectionError."""
        local = self._starting.result()
        import ray

        ray.init(
            address=local.address,
            namespace=self._namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )

    def watch(self, on_loss: Callable[[int], None]) -> None:
        """Calls `on_loss(exit code of the head)` in a thread of its own when Ray ends without having been stopped.

        Nobody else in this process may be able to act then: Ray's client blocks whoever asks it something, and ends the
        process after a minute (ray 2.60, gcs_rpc_server_reconnect_timeout_s).
        """
        threading.Thread(target=self._watch, args=(on_loss,), name="ray-watch", daemon=True).start()

    def _watch(self, on_loss: Callable[[int], None]) -> None:
        try:
            code = self._starting.result().wait()
        except LocalRayError:
            return  # it never came up: whoever joins is told
        if not self._is_ending:
            on_loss(code)

    def stop(self, storage: Storage, log_folder: str | None) -> None:
        """Ends every process of it; before that copies its logs to `log_folder` of `storage`, when one is given."""
        self._is_ending = True
        try:
            local = self._starting.result()  # a start that is under way is waited for: it has a limit
        except LocalRayError:
            return
        if log_folder is not None:
            local.save_logs(storage, log_folder)
        local.stop()
