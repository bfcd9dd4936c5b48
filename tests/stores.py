"""A real object store on this machine (SeaweedFS), and a faulty proxy between it and its clients."""

import http.client
import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3

BUCKET = "pets"

Keys = dict[str, str]
"""{variable: value} of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""


def new_keys() -> Keys:
    return {"AWS_ACCESS_KEY_ID": secrets.token_hex(8), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}


SLOW_DOWN = (503, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")


def free_ports(count: int) -> list[int]:
    """Return `count` consecutive ports that are free, as are those 10,000 above, which SeaweedFS also uses."""
    for _ in range(100):
        first = random.randrange(20_000, 22_000)
        ports = [*range(first, first + count), *range(first + 10_000, first + 10_000 + count)]
        if all(_is_free(port) for port in ports):
            return ports[:count]
    raise OSError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class SeaweedFS:
    """The store: one process on the loopback, with its data in a folder.

    `keys` have all permissions; `reader` may only read and list below open/.
    """

    def __init__(self, folder: Path, keys: Keys, reader: Keys) -> None:
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        assert weed, "pip install -e '.[test]' brings SeaweedFS (weed)"
        master, volume, filer, self.port = free_ports(4)
        addresses = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        addresses += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        addresses += [f"-s3.port={self.port}", "-metricsPort=0"]
        quiet = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        quiet += ["-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false"]
        access = {
            "admin": (keys, ["Admin", "Read", "Write", "List", "Tagging"]),
            "reader": (reader, [f"Read:{BUCKET}/open/*", f"List:{BUCKET}/open/*"]),
        }
        identities = [
            {
                "name": name,
                "credentials": [dict(zip(("accessKey", "secretKey"), of.values(), strict=True))],
                "actions": actions,
            }
            for name, (of, actions) in access.items()
        ]
        config = folder / "identities.json"
        config.write_text(json.dumps({"identities": identities}))
        self._log = folder / "seaweedfs.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # Not "mini": its other services use a tenth of a core even when idle.
                [weed, "server", "-filer", "-s3", f"-dir={folder}", *addresses, *quiet, f"-s3.config={config}"],
                env=os.environ | keys | {"GOMEMLIMIT": "256MiB", "GOGC": "50"},
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        self._wait()
        named = dict(zip(("aws_access_key_id", "aws_secret_access_key"), keys.values(), strict=True))
        endpoint = f"http://127.0.0.1:{self.port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **named).create_bucket(Bucket=BUCKET)

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()[-2000:]
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class FaultyProxy:
    """Proxy between the store and its clients. It counts requests and, on demand, injects network faults.

    `faults` has a probability for each of:
    refuse    answer 503 SlowDown without asking the store
    drop      close the connection without asking the store
    lose      ask the store, but close the connection before the answer
    truncate  close the connection in the middle of the answer
    delay     answer half a second later
    """

    def __init__(self) -> None:
        self.upstream_port = 0
        """Port of the store, once it is started."""
        self.faults: dict[str, float] = {}
        self.answer: tuple[int, str] | None = None
        """Status and XML of a fixed answer to every request, instead of asking the store."""
        self.requests: Counter[str] = Counter()
        """Number of requests by kind: "GET", "HEAD", "PUT", "LIST", …"""
        self.done: Counter[str] = Counter()
        """Number of injected faults by kind."""
        self._generator = random.Random(0)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Relay):
            def fate(self) -> str:
                return proxy._fate(self.command, self.path)

            def canned(self) -> tuple[int, str] | None:
                return proxy.answer

            def upstream(self) -> int:
                return proxy.upstream_port

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self, seed: int = 0, **faults: float) -> None:
        """Reset the counts and use these faults from now on."""
        with self._lock:
            self._generator = random.Random(seed)
            self.faults, self.answer = faults, None
            self.requests.clear()
            self.done.clear()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fate(self, method: str, path: str) -> str:
        with self._lock:
            self.requests["LIST" if method == "GET" and "list-type=2" in path else method] += 1
            drawn = self._generator.random()
            for fault, chance in self.faults.items():
                if drawn < chance:
                    self.done[fault] += 1
                    return fault
                drawn -= chance
        return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error: a killed client leaves in the middle of its request."""


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def upstream(self) -> int:
        raise NotImplementedError

    def fate(self) -> str:
        raise NotImplementedError

    def canned(self) -> tuple[int, str] | None:
        raise NotImplementedError

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        fate, canned = self.fate(), self.canned()
        if fate == "refuse" or canned:
            self._send(*self._xml(*(canned or SLOW_DOWN)))
            return
        if fate == "drop":
            self._hang_up()
            return
        status, headers, content = self._ask(body)
        if fate == "delay":
            time.sleep(0.5)
        if fate == "lose":
            self._hang_up()
        elif fate == "truncate":
            self._send(status, headers, content[: len(content) // 2])
            self._hang_up()
        else:
            self._send(status, headers, content)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raise NotImplementedError("boto3 does not send chunks over plain HTTP")
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Forward the headers unchanged: the signature covers them, this proxy's address included."""
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream(), timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            content = response.read()
            skipped = ("transfer-encoding", "connection", "content-length")
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in skipped]
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            return response.status, [*headers, ("Content-Length", length or "0")], content
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _xml(status: int, text: str) -> tuple[int, list[tuple[str, str]], bytes]:
        content = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        return status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))], content


def secret_free(text: str, keys: dict[str, str]) -> bool:
    """Return True if no key is in a text."""
    return not any(re.search(re.escape(key), text) for key in keys.values())
