import contextlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import do_shards, kill_at_step, make_plan

from petseg import files, storage
from petseg.data import manifest
from petseg.errors import InputError
from petseg.inference import output_folder
from petseg.inference.plan import Outputs, Plan, Summary
from petseg.storage import local

SETTINGS = {"checkpoint_sha256": "c0ffee"}


def start(plan: Plan, *, overwrite: bool = False) -> dict[int, Summary]:
    done = output_folder.find_done(plan, overwrite=overwrite)
    output_folder.begin(plan, overwrite=overwrite)
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_find_done_second_start_completes_with_the_same_bytes(photos: Path, tmp_path: Path) -> None:
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
def test_find_done_damaged_or_foreign_shard_is_not_done(harm: str, photos: Path, tmp_path: Path) -> None:
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
def test_find_done_other_settings_are_refused(
    changes: dict[str, object], message: str, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plan = make_plan(photos, output)
    start(plan)
    do_shards(plan, 0)
    before = content(output)
    with pytest.raises(InputError, match=f"--output .*out: started with other settings: {message}"):
        start(make_plan(photos, output, **changes))
    assert content(output) == before


def test_find_done_new_output_is_not_created(photos: Path, tmp_path: Path) -> None:
    assert output_folder.find_done(make_plan(photos, tmp_path / "out")) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_find_done_edited_plan_is_refused(content: bytes, photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    (tmp_path / "out" / files.PLAN).write_bytes(content)
    with pytest.raises(InputError, match=r"out/_plan\.json: "):
        output_folder.find_done(plan)


def test_find_done_changed_photos_are_refused_and_named(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    do_shards(plan, 0)
    (photos / "new.jpg").touch()
    (photos / "a" / "2.jpg").unlink()
    (photos / "b" / "1.jpg").rename(photos / "b" / "one.jpg")
    with pytest.raises(InputError) as refused:
        start(make_plan(photos, tmp_path / "out"))
    message = str(refused.value)
    assert message.startswith(f"--output {tmp_path}/out: it has other photos than --images: ") and "\n" not in message
    assert f"2 new: {photos}/b/one.jpg, {photos}/new.jpg" in message
    assert f"2 gone: {photos}/a/2.jpg, {photos}/b/1.jpg" in message


def test_find_done_changed_photos_and_broken_manifest_are_refused(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    do_shards(plan, 0)
    (tmp_path / "out" / files.PREDICTION_MANIFEST).write_bytes(b"broken")
    (photos / "new.jpg").touch()
    with pytest.raises(
        InputError, match=r"it has other photos than --images: its _manifest\.arrow cannot be read; pass"
    ):
        start(make_plan(photos, tmp_path / "out"))


def predict_all(photos: Path, output: Path, **changes: object) -> dict[str, bytes]:
    plan = make_plan(photos, output, **changes)
    start(plan, overwrite=True)
    output_folder.finish(plan, do_shards(plan, *range(plan.target.num_shards)))
    return content(output)


def test_begin_output_of_another_job_begun_meanwhile_is_unchanged(photos: Path, tmp_path: Path) -> None:
    """Ray is started between `find_done` and `begin`, so another job can begin meanwhile."""
    late, early = make_plan(photos, tmp_path / "out"), make_plan(photos, tmp_path / "out", shard_size=2)
    assert output_folder.find_done(late) == {}
    start(early)
    do_shards(early, 0)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"started with other settings: shard_size \(was 2, now 3\)"):
        output_folder.begin(late)
    assert content(tmp_path / "out") == before


def test_begin_two_jobs_race_loser_changes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of the other job's photos is not replaced either."""
    (photos / "late.jpg").touch()
    late = make_plan(photos, tmp_path / "out")
    (photos / "late.jpg").unlink()
    remove_leftovers, early = storage.remove_leftovers, {}

    def another_begins(output: str) -> None:
        """Start the other job after this one has looked for a plan and before it writes."""
        monkeypatch.setattr(storage, "remove_leftovers", remove_leftovers)
        start(make_plan(photos, tmp_path / "out"))
        early.update(content(tmp_path / "out"))

    monkeypatch.setattr(storage, "remove_leftovers", another_begins)
    with pytest.raises(InputError, match=r"--output: .* already exists"):
        output_folder.begin(late)
    assert early and content(tmp_path / "out") == early


def test_require_plan_output_missing_on_this_machine_is_an_error(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    with pytest.raises(OSError, match=r"no _plan.json there any more, or not on every machine"):
        output_folder.require_plan(plan.target)


def test_overwrite_all_files_of_the_other_job_are_removed(photos: Path, tmp_path: Path) -> None:
    output, own = tmp_path / "out", tmp_path / "out" / "notes.txt"
    predict_all(photos, output, shard_size=2, outputs=Outputs(overlay=True))
    own.write_text("the user's")
    (photos / "a" / "2.jpg").unlink()
    assert predict_all(photos, output) == predict_all(photos, tmp_path / "fresh") | {"notes.txt": b"the user's"}


def test_overwrite_masks_folder_of_no_job_is_refused(photos: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "out" / "masks" / "a" / "0.png"
    start(make_plan(photos, tmp_path / "out", outputs=Outputs(png=False)))
    labelled.parent.mkdir(parents=True)
    labelled.touch()
    predict_all(photos, tmp_path / "out", shard_size=2, outputs=Outputs(png=False))
    with pytest.raises(InputError, match=r"its masks/ is not of the job that was begun there"):
        predict_all(photos, tmp_path / "out")
    assert labelled.read_bytes() == b""


def test_overwrite_user_file_among_the_masks_is_kept(photos: Path, tmp_path: Path) -> None:
    predict_all(photos, tmp_path / "out")
    corrected = tmp_path / "out" / "masks" / "corrected.png"
    corrected.touch()
    predict_all(photos, tmp_path / "out", shard_size=2)
    assert corrected.exists()


def test_overwrite_plan_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    plan = tmp_path / "out" / files.PLAN
    plan.parent.mkdir()
    plan.write_text('{"png": true, "steps": []}')
    with pytest.raises(InputError, match="not the plan of a prediction"):
        start(make_plan(photos, tmp_path / "out"), overwrite=True)


def test_all_parquet_files_together_have_a_row_per_photo(photos: Path, tmp_path: Path) -> None:
    """`*.parquet` is what people read, with whatever program."""
    predict_all(photos, tmp_path / "out")
    expected = sorted(manifest.discover(str(photos))["id"].to_pylist())
    rows = duckdb.read_parquet(f"{tmp_path}/out/*.parquet").select("id").fetchall()
    assert sorted(name for (name,) in rows) == expected
    listed = pa.ipc.open_file(str(tmp_path / "out" / "_manifest.arrow")).read_all()
    assert listed["id"].to_pylist() == expected


def test_overwrite_output_of_an_earlier_version_is_replaced(photos: Path, tmp_path: Path) -> None:
    """It had a list of its photos in Parquet."""
    predict_all(photos, tmp_path / "out")
    old, new = tmp_path / "out" / files.OLD_PREDICTION_MANIFEST, tmp_path / "out" / files.PREDICTION_MANIFEST
    pq.write_table(pa.ipc.open_file(str(new)).read_all(), old)
    new.unlink()
    (photos / "a" / "0.jpg").rename(photos / "other.jpg")
    start(make_plan(photos, tmp_path / "out", shard_size=2), overwrite=True)
    assert not old.exists() and new.exists()
    assert not list((tmp_path / "out" / "masks").rglob("*.png"))


def test_overwrite_missing_manifest_is_refused(photos: Path, tmp_path: Path) -> None:
    predict_all(photos, tmp_path / "out")
    (tmp_path / "out" / files.PREDICTION_MANIFEST).unlink()
    with pytest.raises(InputError, match="so what to overwrite is not known"):
        start(make_plan(photos, tmp_path / "out", shard_size=2), overwrite=True)


def test_write_shard_output_taken_over_by_another_job_is_an_error(photos: Path, tmp_path: Path) -> None:
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


def test_begin_manifest_replaced_by_a_killed_start_is_restored(photos: Path, tmp_path: Path) -> None:
    expected = predict_all(photos, tmp_path / "out")[files.PREDICTION_MANIFEST]
    (tmp_path / "out" / files.PREDICTION_MANIFEST).write_bytes(b"of the job that was killed before its plan")
    start(make_plan(photos, tmp_path / "out"))
    assert (tmp_path / "out" / files.PREDICTION_MANIFEST).read_bytes() == expected


def test_overwrite_same_job_keeps_its_finished_shards(photos: Path, tmp_path: Path) -> None:
    """The same command with --overwrite is run again after a kill."""
    plan = make_plan(photos, tmp_path / "out")
    start(plan, overwrite=True)
    done = do_shards(plan, 1)
    assert start(plan, overwrite=True) == done


@pytest.mark.parametrize("step", [0, 1, 3, 5, 8, 12, 15, 19, 20, 21, 22, 23])
def test_overwrite_killed_at_each_step_second_start_completes(
    step: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each deletion and write. Remaining files are never taken as finished by the new job."""
    predict_all(photos, tmp_path / "out", shard_size=2, outputs=Outputs(overlay=True))

    plan = make_plan(photos, tmp_path / "out")
    with monkeypatch.context() as patched:
        kill_at_step(patched, step)
        # _SUCCESS.json, the report, four shards, seven masks, seven overlays, the manifest, an old one and the plan
        with pytest.raises(KeyboardInterrupt) if step < 23 else contextlib.nullcontext():
            start(plan, overwrite=True)
    assert not output_folder.is_finished(plan, output_folder.find_done(plan, overwrite=True))
    assert predict_all(photos, tmp_path / "out") == predict_all(photos, tmp_path / "fresh")


@pytest.mark.parametrize("name", ["masks/x.png", "data.parquet", "_SUCCESS.json"])
def test_find_done_output_of_something_else_is_refused(name: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    with pytest.raises(InputError, match=f"{name.split('/')[0]} already exists"):
        start(make_plan(photos, tmp_path / "out"))
    assert list(content(tmp_path / "out")) == [name]


def test_begin_and_finish_temporary_files_are_removed(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    leftover = tmp_path / "out" / f"{local.TEMPORARY}0123"
    leftover.write_bytes(b"half a file")
    start(plan)
    assert not leftover.exists()
    leftover.write_bytes(b"half a file, of a worker that was killed and replaced")
    output_folder.finish(plan, do_shards(plan, 0, 1, 2))
    assert not leftover.exists()
