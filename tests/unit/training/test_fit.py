from typing import Any
from unittest import mock

import pytest
import ray.exceptions
import ray.train
from checkpoints import CONFIG

from petseg.config.train import RecipeName, TrainConfig
from petseg.errors import InputError, JobError, UnavailableError
from petseg.training import fit, recipes
from petseg.training.loop import WorkerSetup

DEATH = ray.exceptions.ActorDiedError()


OUT_OF_MEMORY = ray.exceptions.OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.3, ID: 01) was "
    "22.90GB used / 23.54GB limit (0.972)\n"
    "Selected to kill: (Actor(c0fc): …, actual memory used=3.12GB, worker ID=aa01)\n"
)


def run_fit(
    monkeypatch: pytest.MonkeyPatch, failures: list[dict[int, Exception] | Exception], reached: list[int]
) -> list[str]:
    """Call `fit` whose attempts fail like this, after these epochs. Return its lines, if it does not raise."""
    attempts, lines = iter(failures), []
    epochs = iter(reached)
    current = 0

    def fit_once(*_: object) -> None:
        nonlocal current
        causes = next(attempts, None)
        if causes is not None:
            current = next(epochs)
            if isinstance(causes, Exception):
                raise causes
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


@pytest.mark.parametrize(
    "failure", [{0: ConnectionError(), 1: OUT_OF_MEMORY}, ray.train.ControllerError(OUT_OF_MEMORY), OUT_OF_MEMORY]
)
def test_fit_third_time_out_of_memory_ends_it_with_the_sizes(
    failure: dict[int, Exception] | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray has ended a worker, a process of Ray Train while the workers start, or the one that supervises them."""
    event = "out of memory: Ray ended a worker (the process used 3.1 GiB, and all of 10.0.0.3 22.9 of 23.5 GiB)"
    assert (
        run_fit(monkeypatch, [failure] * 4, [0, 0, 1, 1])
        == [f"{event}; continuing after epoch 0"] * 2 + [f"{event}; continuing after epoch 1"] * 2
    )
    with pytest.raises(JobError) as caught:
        run_fit(monkeypatch, [failure] * 3, [0] * 3)
    assert str(caught.value) == (
        f"{event}, 3 times since the last checkpoint; lower --batch-size or --num-workers, or use machines with more "
        "memory: --resume continues"
    )


def test_fit_other_error_of_the_supervising_process_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ray.train.ControllerError, match="a bug"):
        run_fit(monkeypatch, [ray.train.ControllerError(ValueError("a bug"))], [0])


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


@pytest.mark.parametrize(
    ("recipe", "reached", "before", "now", "note"),
    [
        (
            "best",
            (15, 0),
            15,
            30,
            "30 instead of 15: the learning rate continues on the schedule of 30 epochs, at 0.59",
        ),
        ("best", (15, 0), 15, 30, " instead of 0 of --learning-rate"),
        ("pretrained", (5, 0), 15, 30, "at 0.99 instead of 0.84 of"),
        ("best", (5, 14), 15, 30, "at 0.98 instead of 0.78 of"),
        ("best", (5, 0), 15, 10, "at 0.59 instead of 0.84 of"),
        ("best", (5, 0), 15, 15, ""),
        ("best", (5, 0), 15, 5, ""),  # nothing is left to train
        ("best", None, 15, 30, ""),  # nothing was trained
        ("keras", (15, 0), 15, 30, ""),
    ],
)
def test_schedule_note_has_both_factors_of_the_next_step(
    recipe: RecipeName,
    reached: tuple[int, int] | None,
    before: int,
    now: int,
    note: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """165 pairs: two workers have 20 batches of 4, one worker has 20 of 8."""
    last = reached and mock.Mock(epoch=reached[0], step=reached[1])
    monkeypatch.setattr(fit.checkpoint, "last", lambda _: last)
    for workers in ((1,), (1, 2)):
        config = recipes.resolve(TrainConfig(recipe=recipe, epochs=now, num_workers=workers, batch_size=8))
        pairs: Any = mock.Mock(num_rows=165)
        setup = WorkerSetup(config=config, model=CONFIG, run="run", cpus=1, train=pairs, val=pairs)
        line = fit.schedule_note(setup, before)
        assert note in line and bool(note) == line.startswith("note: --epochs ")
