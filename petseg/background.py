"""Threads beside a job's own work."""

import signal
import threading
from collections.abc import Callable


def start_thread(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    """Start a thread that ends with the process and never receives Ctrl-C.

    The system gives SIGINT to any thread that does not block it. If the main thread blocks it, to start Ray without an
    interruption, no other thread may take it.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new thread inherits the mask
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
