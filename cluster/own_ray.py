"""The local Ray of a driver: it starts in a thread, while the driver does other things, and is ended whatever happened."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from zerofleet.cluster.local import LocalRay, LocalRayError, own_environment
from zerofleet.trainer.storage import Storage


class OwnRay:
    """To be made before Ray is imported, since it reads its environment then."""

    def __init__(self, run: str, num_cpus: int, num_gpus: int) -> None:
        own_environment()
        self._run = run
        self._starting = ThreadPoolExecutor(1, "local-ray").submit(LocalRay.start, run, num_cpus, num_gpus)

    def join(self) -> None:
        """Makes this process Ray's driver; waits for the start. Raises LocalRayError, ConnectionError."""
        local = self._starting.result()
        import ray

        ray.init(
            address=local.address,
            namespace=self._run,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )

    def stop(self, storage: Storage, log_folder: str | None) -> None:
        """Ends every process of it; before that copies its logs to `log_folder` of `storage`, when one is given."""
        try:
            local = self._starting.result()  # a start that is under way is waited for: it has a limit
        except LocalRayError:
            return
        if log_folder is not None:
            local.save_logs(storage, log_folder)
        local.stop()
