"""``python -m dnirnn.tasks.cli``: now ``python -m dnirnn``."""

import dnirnn.__main__  # noqa: F401
