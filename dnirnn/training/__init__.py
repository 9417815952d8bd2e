"""One run: the trainer, and its rooms: a file for each thing that a run does."""
