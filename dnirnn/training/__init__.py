"""One run: the loop, the update, the log, the run folder and its checkpoints."""
