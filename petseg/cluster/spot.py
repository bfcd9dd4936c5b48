"""Program that drains this machine's Ray node when EC2 announces that it takes the spot instance away.

`cluster.yaml` runs `python -m petseg.cluster.spot` on each worker after `ray start`. No other module imports this one.
"""

import contextlib
import functools
import http.client
import json
import logging
import os
import select
import sys
from datetime import datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from petseg.cluster import ray_compat
from petseg.errors import JobError

_ENDPOINT = "http://169.254.169.254"
"""Address of the instance metadata service, if AWS_EC2_METADATA_SERVICE_ENDPOINT does not name another one."""

_POLL_S = 5.0
"""Seconds between two requests, as AWS recommends. A notice comes two minutes before the interruption."""

_TIMEOUT_S = 1.0


class Notice(NamedTuple):
    """EC2's notice that it interrupts this instance."""

    action: str
    """"terminate", "stop" or "hibernate"."""
    time: datetime
    """Time of the interruption, with its time zone."""


def read_notice(endpoint: str) -> Notice | None:
    """Return the notice in the metadata service at `endpoint` (IMDSv2), or None if there is none.

    Raises `OSError`, `http.client.HTTPException` or `ValueError` if the service does not answer as expected.
    """
    # The rebalance recommendation is not read. It may come hours before a notice, or with no notice after it, and a
    # drained node gets no more work.
    service = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=_TIMEOUT_S)  # never through a proxy
    with contextlib.closing(service):
        status, token = _request(service, "PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        if status == HTTPStatus.OK:
            path, headers = "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
            status, content = _request(service, "GET", path, headers)
            if status == HTTPStatus.NOT_FOUND:
                return None
            if status == HTTPStatus.OK:
                return _parse(content)
    raise ValueError(f"HTTP status {status}")


def _request(service: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return the status and the content of the answer."""
    service.request(method, f"/latest/{path}", headers=headers)
    answer = service.getresponse()
    return answer.status, answer.read().decode()


def _parse(content: str) -> Notice:
    try:
        fields = json.loads(content)
        return Notice(fields["action"], datetime.fromisoformat(fields["time"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"not a notice: {content}") from error


def watch(address: str, pid: int, node_id: str) -> None:
    """Wait for a notice, ask the Ray cluster at `address` to drain the node, and return.

    Returns without that as soon as the node's process `pid` has ended.
    """
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT
    log_once = functools.cache(logging.info)  # one line for a failure that repeats with every poll
    process = os.pidfd_open(pid)  # readable once the process has ended
    try:
        while True:
            try:
                notice = read_notice(endpoint)
                if notice is not None:
                    log_once(f"notice: EC2 will {notice.action} this instance at {notice.time.isoformat()}")
                    reason = f"EC2 will {notice.action} this spot instance"
                    ray_compat.drain_node(address, node_id, reason, notice.time.timestamp())
                    logging.info(f"node {node_id} is draining: it gets no more work")
                    return
            except (OSError, http.client.HTTPException, ValueError) as error:
                log_once(f"no valid answer from {endpoint}: {error}; trying again every {_POLL_S:g} s")
            except JobError as error:
                log_once(f"node {node_id} is not draining: {error}; trying again every {_POLL_S:g} s")
            if select.select([process], [], [], _POLL_S)[0]:
                return
    finally:
        os.close(process)


def main() -> None:
    """Watch for the Ray node that was last started on this machine."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s")
    address = ray_compat.find_address()
    node = ray_compat.local_node(address) if address else None
    if address is None or node is None:
        sys.exit("error: no Ray runs on this machine; run `ray start` first")
    logging.info(f"node {node[1]}: waiting for a notice that EC2 takes this instance away")
    watch(address, *node)


if __name__ == "__main__":
    main()
