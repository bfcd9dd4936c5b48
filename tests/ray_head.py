"""A Ray for one test, started by `ray start` as a user does, but on the loopback only, and stopped by pid."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Settings that keep `ray start` on the loopback. On Linux it otherwise replaces 127.0.0.1 by the machine's address and
listens to the network."""


class Head:
    """A head node and the nodes that joined it. All its processes have its folder as RAY_TMPDIR."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.port, self.dashboard_port, *others = free_ports(6)
        self.address = f"127.0.0.1:{self.port}"
        self.flags = (
            f"--block --port={self.port} --dashboard-port={self.dashboard_port} --object-store-memory={150 * 2**20} "
            f"--ray-client-server-port={others[0]} --dashboard-agent-listen-port={others[1]}"
        )
        """Flags of `ray start --head` that avoid other Rays on this machine."""
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env |= {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",  # else `ray job submit` delays the job's lines
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",  # do not wait for actors that outlive their job
            "AUTOSCALER_METRIC_PORT": str(others[2]),
            "DASHBOARD_METRIC_PORT": str(others[3]),
            **env,
        }
        self._log = folder / "head.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: str, **env: str) -> None:
        """Run the shell command that starts a head and return once the head is up. The command keeps running."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/bash", "-ec", command],
                env=self.env | LOOPBACK | env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: not self.running() or "Ray runtime started" in self.log(), 90, self.log)
        assert self.running(), self.log()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def processes(self) -> dict[int, str]:
        """Return {pid: command line} of all its live processes, orphans included."""
        mark = f"\0RAY_TMPDIR={self.folder}\0".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended, or belongs to another user
                if mark in b"\0" + (process / "environ").read_bytes() and int(process.name) != os.getpid():
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        return found

    def end(self) -> dict[int, str]:
        """Send SIGTERM as a shutdown does, kill the processes that remain after a while, and return those."""
        for pid, command in self.processes().items():
            if " start " in command:
                signal_if_there(pid, signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.processes(), 45)
        left = self.processes()
        for pid in left:
            signal_if_there(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
        return left


def signal_if_there(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def free_ports(count: int) -> list[int]:
    """Return free loopback ports outside the range that Ray gives its workers."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in range(20_000 + os.getpid() % 5000, 32_000):
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                break
        return ports


def wait_until(happened: Callable[[], Any], limit_s: float, otherwise: Callable[[], object] = lambda: "") -> Any:
    """Wait until `happened` returns a true value, and return it."""
    deadline = time.monotonic() + limit_s
    while True:
        result = happened()
        if result:
            return result
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


@contextlib.contextmanager
def new(**env: str) -> Iterator[Head]:
    """Yield a head that is not started yet, and stop all its processes afterwards."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # it holds Ray's sockets, whose paths must be short
        head = Head(Path(folder), **env)
        try:
            yield head
        finally:
            left = head.end()
        assert left == {}


def on_loopback(parameters: Any, head: bool) -> None:
    """Keep a joining node on the loopback. For RAY_START_HOOK."""
    from ray._private import services

    assert not head
    services.get_node_ip_address = lambda address=None: "127.0.0.1"
