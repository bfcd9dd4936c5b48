import signal
import threading

from petseg.background import start_thread


def test_start_thread_blocks_ctrl_c_there_and_not_here() -> None:
    masks: list[set[int]] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    start_thread(
        "one", lambda *what: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, what)), signal.SIGTERM
    ).join()
    thread = start_thread("two", threading.Event().wait)
    assert thread.daemon and thread.name == "two"
    assert [signal.SIGINT in mask for mask in masks] == [True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
