"""The command line ``dnirnn``, one file a command."""
