from typing import Any
from unittest import mock

import pytest
import ray.exceptions
import ray.train

from petseg.errors import InputError, JobError, UnavailableError
from petseg.training import fit

DEATH = ray.exceptions.ActorDiedError()


def run_fit(monkeypatch: pytest.MonkeyPatch, failures: list[dict[int, Exception]], reached: list[int]) -> list[str]:
    """Call `fit` whose attempts fail like this, after these epochs. Return its lines, if it does not raise."""
    attempts, lines = iter(failures), []
    epochs = iter(reached)
    current = 0

    def fit_once(*_: object) -> None:
        nonlocal current
        causes = next(attempts, None)
        if causes is not None:
            current = next(epochs)
            raise ray.train.WorkerGroupError("failed", causes)

    setup: Any = mock.Mock()
    setup.config.max_failures = 3
    setup.train.blocks = setup.val.blocks = []
    monkeypatch.setattr(fit, "_fit_once", fit_once)
    monkeypatch.setattr(fit, "_reached", lambda _: (current, 0))
    monkeypatch.setattr(fit, "require_workers", lambda *_: None)
    monkeypatch.setattr(fit.ray, "wait", lambda *_, **__: None)
    fit.fit(setup, log=lines.append)
    return lines


def test_fit_same_error_at_the_same_step_is_not_tried_a_third_time(monkeypatch: pytest.MonkeyPatch) -> None:
    error: dict[int, Exception] = {0: ValueError("one value per channel")}
    assert len(run_fit(monkeypatch, [error], [0])) == 1
    with pytest.raises(ray.train.WorkerGroupError):
        run_fit(monkeypatch, [error] * 2, [0] * 2)


def test_fit_same_error_after_progress_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    error: dict[int, Exception] = {0: ValueError("flaky")}
    assert len(run_fit(monkeypatch, [error] * 4, [1, 2, 3, 4])) == 4


def test_fit_deaths_at_the_same_step_are_tried_as_often_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run_fit(monkeypatch, [{0: DEATH}] * 3, [0] * 3)) == 3
    with pytest.raises(JobError, match="4 times since the last checkpoint; --resume continues"):
        run_fit(monkeypatch, [{0: DEATH}] * 4, [0] * 4)


def test_fit_failure_without_any_cause_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = run_fit(monkeypatch, [{}], [0])
    assert line.startswith("a worker has died (") and line.endswith("continuing after epoch 0")


@pytest.mark.parametrize(
    ("cause", "raised"), [(InputError("a"), InputError), (JobError("a"), JobError), (UnavailableError("a"), JobError)]
)
def test_fit_error_for_the_user_ends_it_at_once(
    cause: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(raised, match=r"^a"):
        run_fit(monkeypatch, [{0: DEATH, 1: cause}], [0])
