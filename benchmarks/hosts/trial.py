"""`python -m zerofleet.benchmarks.hosts.trial TOLD ANSWER`: one trial (launch/chaos/trial.py), in a process on a host of the harness.

Both are files with a pickle: the arguments of `run_trial`, and the Trial.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from zerofleet.launch.chaos.trial import run_trial


def main() -> None:
    told, answer = map(Path, sys.argv[1:])
    answer.write_bytes(pickle.dumps(run_trial(*pickle.loads(told.read_bytes()))))


if __name__ == "__main__":
    main()
