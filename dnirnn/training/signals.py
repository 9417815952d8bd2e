"""Signals: Ctrl-C and SIGTERM ask a run to save and stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the update was finished and the run saved; the message says how far it got.

    signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int = signal.SIGINT):
        super().__init__(message)
        self.signal = signal


@contextmanager
def interruptible(ask: Callable[[int], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls ``ask`` with its number; a second Ctrl-C is as ever.

    Only the main thread gets signals: in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number, frame):
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        ask(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
