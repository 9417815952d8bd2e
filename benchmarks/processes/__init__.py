"""Several processes: see __main__."""
