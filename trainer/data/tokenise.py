"""`python -m zerofleet.trainer.data.tokenise DESCRIPTOR`: one process of `pool.py`, which tokenises the parts that it is given."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

from zerofleet.trainer.credentials import mask_output
from zerofleet.trainer.data.parts import Part, Work, tokenise_part
from zerofleet.trainer.data.tokenizer import Encoder
from zerofleet.trainer.errors import ZerofleetError

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ends when nobody gives it parts any more, at the first error, and with its parent."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    mask_output()  # the user's functions run here
    connection = Connection(int(sys.argv[1]))  # of a parent that died before this line nothing comes: EOF
    try:
        _serve(connection)
    except (EOFError, ConnectionError):
        return
    except ZerofleetError as error:
        connection.send(error)


def _serve(connection: Connection) -> None:
    work: Work
    parts: list[Part]
    work, parts = connection.recv()
    encoder = Encoder(work.tokenizer)
    while True:
        index = connection.recv()
        part = parts[index]
        tokenise_part(part, encoder, work, lambda read: connection.send((index, read, False)))  # noqa: B023 - it returns first
        connection.send((index, part.num_bytes, True))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of the tokenizer need not be waited for
