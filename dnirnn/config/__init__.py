"""What a person says of a run: options, and the network and the task that they name."""
