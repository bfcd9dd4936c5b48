"""Compare epochs of a run by the value that --keep-best-by names."""

import math
from collections.abc import Mapping
from typing import Any

KEY = "keep_best_by"
"""Key of an epoch's metrics that holds the flag's value, unless it is the default."""

DEFAULT = "val_loss"


def order(epoch: Mapping[str, Any]) -> float:
    """Return a number that is lower for a better epoch, given its metrics; infinite if the value is undefined."""
    by = epoch.get(KEY, DEFAULT)
    if by == DEFAULT:
        value, sign = epoch.get("val_loss"), 1
    elif by == "miou":
        value, sign = epoch.get("val_miou"), -1
    else:
        value, sign = epoch.get("val_iou", {}).get(by.removeprefix("iou:")), -1
    return math.inf if value is None else sign * value
