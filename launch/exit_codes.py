"""Exit codes of the command line and of the driver. DESIGN 6."""

OK = 0
RUN_FAILED = 1
USER_MISTAKE = 2
TIMEOUT = 3
NOT_FOUND = 4
INTERRUPTED = 130
"""Detached: the run goes on."""
