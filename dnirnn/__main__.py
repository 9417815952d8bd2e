"""``python -m dnirnn`` is the command line."""

import signal
import sys

from dnirnn.commands.cli import main

# A process started in the background ignores Ctrl-C; a run must be able to save.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
