"""Prometheus metrics of a job, which Ray serves on the node where the job runs. docs/monitoring.md lists them."""

from ray.util.metrics import Counter, Gauge

from petseg.status import JobStatus, Status

PREFIX = "ray_"
"""Prefix that Ray puts before the name of each metric."""

PHOTOS = "petseg_photos_total"
FAILED = "petseg_photos_failed_total"
RATE = "petseg_photos_per_second"
WAITING = "petseg_waiting_for_nodes"

# Not "job": that is the label by which Prometheus tells what it scrapes.
_TAGS = ("command", "output")


def export_status(status: JobStatus) -> None:
    """Export the numbers of a job with each of its heartbeats. This process must have joined Ray."""
    status.subscribe(_Metrics(status))


class _Metrics:
    def __init__(self, status: JobStatus) -> None:
        # Ray takes only ASCII in the value of a tag.
        output = status.folder.encode("ascii", "backslashreplace").decode()
        tags = {"command": status.get().job, "output": output}
        self._photos = Counter(PHOTOS, "Photos done, failed ones included.", _TAGS).set_default_tags(tags)
        self._failed = Counter(FAILED, "Photos that have failed.", _TAGS).set_default_tags(tags)
        self._rate = Gauge(RATE, "Photos per second over the last minute.", _TAGS).set_default_tags(tags)
        self._waiting = Gauge(WAITING, "Processes for which the cluster has no room yet.", _TAGS).set_default_tags(tags)
        self._exported = {self._photos: 0, self._failed: 0}

    def __call__(self, status: Status) -> None:
        """Export the numbers of a heartbeat."""
        done_by_this_start = {
            self._photos: status.done - status.done_before,
            self._failed: status.failed - status.failed_before,
        }
        for counter, count in done_by_this_start.items():
            if count > self._exported[counter]:  # failures may become fewer: --retry-errors
                counter.inc(count - self._exported[counter])
                self._exported[counter] = count
        self._rate.set(status.rate or 0.0)
        self._waiting.set(status.waiting_for)
