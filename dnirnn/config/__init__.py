"""The configuration of a run: options, and the network and the task that they name."""
