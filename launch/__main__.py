"""`python -m zerofleet.launch` is the command `zerofleet`."""

import sys

from zerofleet.launch.cli import main

sys.exit(main())
