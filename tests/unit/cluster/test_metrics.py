from typing import Any

import pytest
from ray.util.metrics import Metric

from petseg.cluster import metrics
from petseg.status import JobStatus


def test_export_status_only_the_work_of_this_start_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that an output may have any character in its name, and that failures may become fewer."""
    sums: dict[str, float] = {}
    record = Metric._record

    def add(self: Metric, value: float, tags: Any = None) -> None:
        record(self, value, tags)  # rejects what Ray does not take
        assert self.info["default_tags"] == {"command": "predict", "output": r"/data/\xe9"}
        name = self.info["name"]
        sums[name] = value + (sums.get(name, 0) if name.endswith("_total") else 0)

    monkeypatch.setattr(Metric, "_record", add)
    status = JobStatus("predict", "/data/é")
    metrics.export_status(status)
    [listener] = status._listeners
    listener(status.get())
    assert sums == {metrics.RATE: 0, metrics.WAITING: 0}
    status.count(100, done=40, failed=5)
    for done, failed in ((10, 2), (0, -1), (5, 2)):
        status.add(done, failed)
        listener(status.get())
    status.wait(4)
    listener(status.get())
    assert sums.pop(metrics.RATE) > 0
    assert sums == {metrics.PHOTOS: 15, metrics.FAILED: 3, metrics.WAITING: 4}
