import contextlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import do_shards, make_plan

from petseg import storage
from petseg.errors import InputError
from petseg.inference import output_folder
from petseg.inference.plan import MANIFEST_FILE, PLAN_FILE, Outputs, Plan, Summary
from petseg.storage import local

SETTINGS = {"checkpoint_sha256": "c0ffee"}


def start(plan: Plan, *, overwrite: bool = False) -> dict[int, Summary]:
    done = output_folder.find_done(plan, overwrite=overwrite)
    output_folder.begin(plan, overwrite=overwrite)
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_start_does_the_rest_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    whole, halved = make_plan(photos, tmp_path / "whole"), make_plan(photos, tmp_path / "halved")
    start(whole)
    output_folder.finish(whole, do_shards(whole, 0, 1, 2))

    start(halved)
    first = do_shards(halved, 1)
    assert not output_folder.is_finished(halved, first)
    found = start(make_plan(photos, tmp_path / "halved"))
    assert found == first
    done = found | do_shards(halved, 2, 0)
    output_folder.finish(halved, done)
    assert output_folder.is_finished(halved, done)
    assert content(tmp_path / "halved") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "harm", ["missing", "cut short", "empty", "broken footer", "too few rows", "of another plan", "without footer"]
)
def test_a_shard_that_is_not_whole_and_ours_is_not_taken(harm: str, photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    done = do_shards(plan, 0, 1, 2)
    output_folder.finish(plan, done)
    file = Path(plan.target.location(1))
    table = pq.read_table(file)
    if harm == "missing":
        file.unlink()
    elif harm in ("cut short", "empty"):
        file.write_bytes(file.read_bytes()[:-100] if harm == "cut short" else b"")
    elif harm == "broken footer":
        whole = file.read_bytes()
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        file.write_bytes(whole[:footer] + b"\xff" * 40 + whole[footer + 40 :])
    elif harm == "too few rows":
        pq.write_table(table.slice(1), file)
    elif harm == "of another plan":
        changed = table.schema.metadata | {b"petseg.plan": b"0" * 64}
        pq.write_table(table.replace_schema_metadata(changed), file)
    else:
        pq.write_table(table.replace_schema_metadata(None), file)
    found = start(plan)
    assert found == {0: done[0], 2: done[2]}
    assert not output_folder.is_finished(plan, found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 4}, r"shard_size \(was 3, now 4\)"),
        ({"outputs": Outputs(png=False)}, r"png \(was True, now False\)"),
        ({"outputs": Outputs(overlay=True)}, r"overlay \(was False, now True\)"),
        ({"settings": {"checkpoint_sha256": "tea"}}, r"checkpoint_sha256 \(was c0ffee, now tea\)"),
        ({"settings": SETTINGS | {"tile": 1}}, r"tile \(was None, now 1\)"),
    ],
)
def test_other_settings_over_an_output_are_refused(
    changes: dict[str, object], message: str, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plan = make_plan(photos, output)
    start(plan)
    do_shards(plan, 0)
    before = content(output)
    with pytest.raises(InputError, match=f"--output .*out: begun with other settings: {message}"):
        start(make_plan(photos, output, **changes))
    assert content(output) == before


def test_looking_changes_nothing(photos: Path, tmp_path: Path) -> None:
    assert output_folder.find_done(make_plan(photos, tmp_path / "out")) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_plan_that_was_edited_is_refused(content: bytes, photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    (tmp_path / "out" / PLAN_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"out/_plan\.json: "):
        output_folder.find_done(plan)


def test_a_folder_that_changed_is_refused_and_what_changed_is_named(photos: Path, tmp_path: Path) -> None:
    start(make_plan(photos, tmp_path / "out"))
    (photos / "new.jpg").touch()
    (photos / "a" / "2.jpg").unlink()
    (photos / "b" / "1.jpg").rename(photos / "b" / "one.jpg")
    with pytest.raises(InputError) as refused:
        start(make_plan(photos, tmp_path / "out"))
    message = str(refused.value)
    assert "manifest_sha256 (was " in message and "\n" not in message
    assert f"2 new: {photos}/b/one.jpg, {photos}/new.jpg" in message
    assert f"2 gone: {photos}/a/2.jpg, {photos}/b/1.jpg" in message


def test_a_changed_folder_is_refused_also_where_the_old_names_are_lost(photos: Path, tmp_path: Path) -> None:
    start(make_plan(photos, tmp_path / "out"))
    (tmp_path / "out" / MANIFEST_FILE).write_bytes(b"broken")
    (photos / "new.jpg").touch()
    with pytest.raises(InputError, match=r"images \(was 7, now 8\), manifest_sha256"):
        start(make_plan(photos, tmp_path / "out"))


def finished(photos: Path, output: Path, **changes: object) -> dict[str, bytes]:
    plan = make_plan(photos, output, **changes)
    start(plan, overwrite=True)
    output_folder.finish(plan, do_shards(plan, *range(plan.target.num_shards)))
    return content(output)


def test_what_another_job_has_begun_since_one_looked_is_left_to_it(photos: Path, tmp_path: Path) -> None:
    """Starting Ray lies between the look and the beginning: time enough."""
    late, early = make_plan(photos, tmp_path / "out"), make_plan(photos, tmp_path / "out", shard_size=2)
    assert output_folder.find_done(late) == {}
    start(early)
    do_shards(early, 0)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"begun with other settings: shard_size \(was 2, now 3\)"):
        output_folder.begin(late)
    assert content(tmp_path / "out") == before


def test_who_loses_the_race_changes_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the list of the other's photos, by which they would be found."""
    (photos / "late.jpg").touch()
    late = make_plan(photos, tmp_path / "out")
    (photos / "late.jpg").unlink()
    remove_leftovers, early = storage.remove_leftovers, {}

    def another_begins(output: str) -> None:
        """Once this job has looked for a plan, and before it writes anything."""
        monkeypatch.setattr(storage, "remove_leftovers", remove_leftovers)
        start(make_plan(photos, tmp_path / "out"))
        early.update(content(tmp_path / "out"))

    monkeypatch.setattr(storage, "remove_leftovers", another_begins)
    with pytest.raises(InputError, match=r"--output: .* is there already"):
        output_folder.begin(late)
    assert early and content(tmp_path / "out") == early


def test_a_machine_that_does_not_have_the_output_says_so(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    with pytest.raises(OSError, match=r"no _plan.json there any more, or not on every machine"):
        output_folder.require_plan(plan.target)


def test_overwriting_leaves_nothing_of_the_other_job(photos: Path, tmp_path: Path) -> None:
    output, own = tmp_path / "out", tmp_path / "out" / "notes.txt"
    finished(photos, output, shard_size=2, outputs=Outputs(overlay=True))
    own.write_text("the user's")
    (photos / "a" / "2.jpg").unlink()
    assert finished(photos, output) == finished(photos, tmp_path / "fresh") | {"notes.txt": b"the user's"}


def test_overwriting_does_not_touch_a_folder_of_masks_that_no_job_wrote(photos: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "out" / "masks" / "a" / "0.png"
    start(make_plan(photos, tmp_path / "out", outputs=Outputs(png=False)))
    labelled.parent.mkdir(parents=True)
    labelled.touch()
    finished(photos, tmp_path / "out", shard_size=2, outputs=Outputs(png=False))
    with pytest.raises(InputError, match=r"its masks/ is not of the job that was begun there"):
        finished(photos, tmp_path / "out")
    assert labelled.read_bytes() == b""


def test_overwriting_keeps_a_file_among_the_masks_that_no_job_wrote(photos: Path, tmp_path: Path) -> None:
    finished(photos, tmp_path / "out")
    corrected = tmp_path / "out" / "masks" / "corrected.png"
    corrected.touch()
    finished(photos, tmp_path / "out", shard_size=2)
    assert corrected.exists()


def test_a_plan_of_something_else_is_not_overwritten(photos: Path, tmp_path: Path) -> None:
    plan = tmp_path / "out" / PLAN_FILE
    plan.parent.mkdir()
    plan.write_text('{"png": true, "steps": []}')
    with pytest.raises(InputError, match="not the plan of a prediction"):
        start(make_plan(photos, tmp_path / "out"), overwrite=True)


def test_masks_that_are_not_known_by_name_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    finished(photos, tmp_path / "out")
    (tmp_path / "out" / MANIFEST_FILE).unlink()
    with pytest.raises(InputError, match="so what to overwrite is not known"):
        start(make_plan(photos, tmp_path / "out", shard_size=2), overwrite=True)


def test_a_job_whose_output_another_has_taken_over_writes_no_more(photos: Path, tmp_path: Path) -> None:
    """Ctrl-C at `ray job submit` leaves a job running."""
    alive, later = make_plan(photos, tmp_path / "out"), make_plan(photos, tmp_path / "out", settings={"checkpoint": 2})
    start(alive)
    done = do_shards(alive, 0)
    start(later, overwrite=True)
    with pytest.raises(OSError, match="another job has taken it over"):
        do_shards(alive, 1)
    done |= dict.fromkeys((1, 2), done[0])
    with pytest.raises(OSError, match="another job has taken it over"):
        output_folder.finish(alive, done)
    of_later = do_shards(later, 0, 1, 2)
    Path(later.target.location(1)).write_bytes(b"written by another, which was at it when this one began")
    with pytest.raises(OSError, match="another job has been writing there"):
        output_folder.finish(later, of_later)


def test_the_names_are_written_again_where_an_overwriting_start_had_replaced_them(photos: Path, tmp_path: Path) -> None:
    expected = finished(photos, tmp_path / "out")[MANIFEST_FILE]
    (tmp_path / "out" / MANIFEST_FILE).write_bytes(b"of the job that was killed before its plan")
    start(make_plan(photos, tmp_path / "out"))
    assert (tmp_path / "out" / MANIFEST_FILE).read_bytes() == expected


def test_overwriting_keeps_what_the_same_job_has_done(photos: Path, tmp_path: Path) -> None:
    """The same command, --overwrite and all, after a kill."""
    plan = make_plan(photos, tmp_path / "out")
    start(plan, overwrite=True)
    done = do_shards(plan, 1)
    assert start(plan, overwrite=True) == done


@pytest.mark.parametrize("step", [0, 1, 3, 5, 8, 12, 15, 19, 20, 21, 22])
def test_overwriting_that_was_killed_is_taken_up_again(
    step: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its deletions and writes; and never is what is left taken for the new job's."""
    finished(photos, tmp_path / "out", shard_size=2, outputs=Outputs(overlay=True))
    left = step

    def killed_at_step(name: str) -> Callable[..., None]:
        call = getattr(storage, name)

        def run(*given: object, **named: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            call(*given, **named)

        return run

    plan = make_plan(photos, tmp_path / "out")
    with monkeypatch.context() as patched:
        for name in ("remove_file", "write"):
            patched.setattr(storage, name, killed_at_step(name))
        # _SUCCESS.json, the report, four shards, seven masks, seven overlays, the manifest and the plan
        with pytest.raises(KeyboardInterrupt) if step < 22 else contextlib.nullcontext():
            start(plan, overwrite=True)
    assert not output_folder.is_finished(plan, output_folder.find_done(plan, overwrite=True))
    assert finished(photos, tmp_path / "out") == finished(photos, tmp_path / "fresh")


@pytest.mark.parametrize("name", ["masks/x.png", "data.parquet", "_SUCCESS.json"])
def test_the_output_of_something_else_is_not_written_over(name: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    with pytest.raises(InputError, match=f"{name.split('/')[0]} is there already"):
        start(make_plan(photos, tmp_path / "out"))
    assert list(content(tmp_path / "out")) == [name]


def test_leftovers_of_a_killed_start_are_cleared(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    leftover = tmp_path / "out" / f"{local.TEMPORARY}0123"
    leftover.write_bytes(b"half a file")
    start(plan)
    assert not leftover.exists()
    leftover.write_bytes(b"half a file, of a worker that was killed and replaced")
    output_folder.finish(plan, do_shards(plan, 0, 1, 2))
    assert not leftover.exists()
