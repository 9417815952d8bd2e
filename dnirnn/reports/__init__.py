"""Several runs beside one another: what they are, their tables, curves and plots."""
