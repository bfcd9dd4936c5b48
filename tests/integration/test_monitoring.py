"""docs/monitoring.md and the dashboard name what the program has. test_jobs.py scrapes the metrics of a job."""

import dataclasses
import inspect
import json
import re

from conftest import ROOT
from ray.dashboard.modules.reporter import reporter_agent

from petseg.cluster import metrics
from petseg.status import Status

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())
OURS = {metrics.PREFIX + name for name in (metrics.PHOTOS, metrics.FAILED, metrics.RATE, metrics.WAITING)}


def expressions() -> list[str]:
    queries = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return [
        *(query["query"] for query in queries),
        *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    ]


def test_dashboard_every_metric_is_of_petseg_or_of_ray() -> None:
    named = set(re.findall(r"\bray_\w+", " ".join(expressions())))
    of_ray = {metrics.PREFIX + name for name in re.findall(r'"(node_\w+)": Gauge', inspect.getsource(reporter_agent))}
    assert named >= OURS
    assert named - OURS <= of_ray


def test_dashboard_panels_do_not_overlap_and_use_the_chosen_prometheus() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    sources = [panel["datasource"]["uid"] for panel in DASHBOARD["panels"]]
    sources += [target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_monitoring_page_has_every_field_and_metric() -> None:
    fields = {name for row in re.findall(r"^\| (`.*?) \| ", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in dataclasses.fields(Status)} | OURS <= fields
    assert {name for name in fields if name.startswith("ray_petseg")} == OURS
