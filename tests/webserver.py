"""A web server for tests. It serves files and parts of them, and fails on demand."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CUT, BUSY, WHOLE, WRONG_PART = "cut", "busy", "whole", "wrong part"
"""Faults: stop after half of the content; answer 503; ignore Range; send another range than requested."""


class Server:
    """`files` by path. `faults` are used up from the front, one per request. `asked` has (path, Range) of each."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.asked: list[tuple[str, str | None]] = []


@contextmanager
def serve() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers["Range"]))
            fault = state.faults.pop(0) if state.faults else ""
            if fault == BUSY:
                self.send_error(503)
                return
            if self.path not in state.files:
                self.send_error(404)
                return
            content = state.files[self.path]
            start = int((self.headers["Range"] or "bytes=0-")[len("bytes=") : -1]) if fault != WHOLE else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                said = start - 1 if fault == WRONG_PART else start
                self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
            left = content[start:]
            self.send_header("Content-Length", str(len(left)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client is gone or was killed
                self.wfile.write(left[: len(left) // 2] if fault == CUT else left)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listen(Handler) as address:
        state = Server(address)
        yield state


@contextmanager
def listen(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve requests on the loopback and yield the server's address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
