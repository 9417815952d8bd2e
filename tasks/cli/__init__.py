"""Where the command line was: it is dnirnn.commands.cli. This goes with the next release."""

from dnirnn.commands.cli import main

__all__ = ["main"]
