import signal
import threading
import time
from collections.abc import Callable

import pytest
import ray.exceptions

from petseg.cluster import memory, ray_compat
from petseg.cluster.ray_compat import MemoryKill
from petseg.errors import JobError

KILL = MemoryKill("10.0.0.3", used_gib=22.9, limit_gib=23.54, process_gib=3.12)
TEXT = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.3, ID: 01) was \
22.90GB used / 23.54GB limit (0.972)
OOM kill reason: …
Considered workers: [
Selected to kill: (Task: job ID=01000000, lease ID=00, task name=MapBatches(_read), required resources={CPU: 1}, \
pid=7, actual memory used=3.12GB, worker ID=aa01)
Selected to kill: (Actor(c0fc): job ID=01000000, lease ID=01, task name=_StatsActor.__init__, required resources={}, \
pid=8, actual memory used=0.10GB, worker ID=bb02)
]
"""
GIVEN_UP = (
    "out of memory: Ray ended one task 3 times (the last time, the process used 3.1 GiB, and all of 10.0.0.3 22.9 of "
    "23.5 GiB); lower --batch-size"
)


def test_parse_memory_kill_several_processes_gives_the_largest_or_the_named_one() -> None:
    assert ray_compat.parse_memory_kill(TEXT) == KILL
    named = ray_compat.parse_memory_kill(TEXT, "bb02")
    assert named is not None and named.process_gib == 0.1
    assert ray_compat.parse_memory_kill("Task _map_task failed. There are infinite retries remaining") is None


def test_note_printer_out_of_memory_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    show = memory.note_printer()
    show("Task _map_task failed. There are infinite retries remaining")
    show(f"Task _map_task failed due to oom. There are 2 oom retries remaining, so … Error: {TEXT}")
    show(TEXT)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "note: out of memory: Ray ended a process and tries again (the process used 3.1 GiB, and all of 10.0.0.3 22.9 "
        "of 23.5 GiB); after 3 times for one task the job stops\n"
    )


def test_translate_out_of_memory_error_of_ray_is_one_line_with_the_remedy() -> None:
    with pytest.raises(JobError) as caught, memory.translate_out_of_memory("lower --batch-size"):
        raise ray.exceptions.OutOfMemoryError(TEXT)
    assert str(caught.value) == GIVEN_UP
    with (
        pytest.raises(JobError, match=r"^out of memory: Ray ended one task 3 times .*sizes unknown\); more"),
        memory.translate_out_of_memory("more memory"),
    ):
        raise ray.exceptions.OutOfMemoryError("in other words")


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that counts a kill of an actor, and waits until the watching thread has seen it."""
    kills: dict[str, list[MemoryKill]] = {}
    looked = threading.Event()

    def read() -> dict[str, list[MemoryKill]]:
        looked.set()
        return {actor: list(each) for actor, each in kills.items()}

    def add(actor: str) -> None:
        kills.setdefault(actor, []).append(KILL)
        for _ in range(2):
            looked.clear()
            looked.wait()

    monkeypatch.setattr(memory, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(ray_compat, "actor_memory_kills", read)
    return add


def test_stop_if_out_of_memory_third_kill_of_an_actor_ends_the_block(kill: Callable[[str], None]) -> None:
    before, killed = signal.getsignal(signal.SIGUSR1), 0
    with pytest.raises(JobError) as caught, memory.stop_if_out_of_memory("lower --batch-size"):
        time.sleep(0.1)  # the thread has looked once
        for _ in range(2):
            kill("a")
            kill("b")
            killed += 2
        kill("a")
        time.sleep(60)
    assert killed == 4
    assert str(caught.value) == GIVEN_UP and caught.value.__suppress_context__
    assert signal.getsignal(signal.SIGUSR1) == before


def test_stop_if_out_of_memory_progress_between_kills_does_not_end_the_block(kill: Callable[[str], None]) -> None:
    with memory.stop_if_out_of_memory("lower --batch-size") as note_progress:
        for _ in range(3):
            note_progress()
            kill("a")  # the thread sees progress and this kill together
            kill("a")
            kill("a")


def test_stop_if_out_of_memory_ctrl_c_and_other_errors_pass(kill: Callable[[str], None]) -> None:
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), memory.stop_if_out_of_memory("lower --batch-size"):
            raise error
