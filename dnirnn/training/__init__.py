"""One run: the trainer, and its rooms: each file says what it does for a run."""
