"""Metrics as Prometheus scrapes them from Ray."""

import time
import urllib.request
from collections.abc import Mapping

import ray
from prometheus_client.parser import text_string_to_metric_families


def scrape(name: str, labels: Mapping[str, str]) -> float:
    """Return the value of the metric with these labels, as soon as a node of this process's Ray serves it."""
    deadline = time.monotonic() + 60
    while True:
        for node in ray.nodes():
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(address, timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            for sample in (sample for family in families for sample in family.samples):
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        assert time.monotonic() < deadline, f"{name} {labels} is not served"
        time.sleep(0.2)
