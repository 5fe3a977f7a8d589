"""The peer `ds_to_universal`: converts a checkpoint of DeepSpeed so that another world size and stage can load it.

    python -m zerofleet.benchmarks.peers.universal FOLDER

prints as its last line the seconds of the conversion, imports not counted. It is a process of its own because the script's
worker processes are to be forked from one that has everything imported, as they are when it is called by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from zerofleet.benchmarks.rank_group import requests
from zerofleet.trainer.config import TrainConfig

TAG = "state"
UNIVERSAL_TAG = "universal"


def serve_conversions(config: TrainConfig, connections: list[Connection]) -> None:
    """A helper for ranks: each request is a folder, each answer the seconds that its conversion took."""
    for connection, folder in requests(connections):
        command = [sys.executable, "-m", "zerofleet.benchmarks.peers.universal", folder]
        connection.send(float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))


def convert(folder: Path) -> float:
    """Seconds from `folder`/TAG to `folder`/UNIVERSAL_TAG, by the script's own defaults."""
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = argparse.Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(folder / UNIVERSAL_TAG),
        num_extract_workers=4,
        num_merge_workers=2,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    began = time.perf_counter()
    main(arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))
