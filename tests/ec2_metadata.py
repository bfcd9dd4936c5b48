"""EC2's instance metadata service for tests: IMDSv2 only, with the notice of a spot interruption."""

import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import webserver

TOKEN = "AQAEAK8kvWQ=="  # noqa: S105 - of this server


class Metadata:
    """`notice` is the content of spot/instance-action, None before the notice. `polls` counts requests for it."""

    def __init__(self) -> None:
        self.address = ""
        self.notice: str | None = None
        self.polls = 0

    def interrupt(self, in_s: float = 120) -> None:
        """Give notice that the instance is terminated in `in_s` seconds."""
        time = datetime.now(UTC) + timedelta(seconds=in_s)
        self.notice = json.dumps({"action": "terminate", "time": f"{time:%Y-%m-%dT%H:%M:%SZ}"})


@contextmanager
def serve() -> Iterator[Metadata]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            lifetime_s = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0))
            self._answer(200, TOKEN) if self.path == "/latest/api/token" and lifetime_s else self._answer(400)

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                self._answer(401)
            elif self.path != "/latest/meta-data/spot/instance-action":
                self._answer(404)
            else:
                state.polls += 1
                self._answer(404) if state.notice is None else self._answer(200, state.notice)

        def _answer(self, status: int, content: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    state = Metadata()
    with webserver.listen(Handler) as state.address:
        yield state
