import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import do_work, kill_at_step, make_plan
from PIL import Image

from petseg import files
from petseg.errors import InputError
from petseg.inference import existing, output_folder
from petseg.inference.plan import Outputs, Plan, Work
from petseg.storage import local

_TIMES = itertools.count(10**9)


def run(
    photos: Path, output: Path, *, append: bool = False, retry_errors: bool = False, **changes: object
) -> tuple[Plan, Work]:
    """Do one start of a job, as `jobs/predict.py` does."""
    start = existing.find_start(make_plan(photos, output, **changes), append=append)
    plan = start.plan
    done = output_folder.find_done(plan)
    again = output_folder.find_again(start, done, retry_errors=retry_errors)
    work = Work(plan, [shard for shard in range(plan.target.num_shards) if shard not in done], again)
    if again or not output_folder.is_finished(plan, done):
        output_folder.begin(plan)
        output_folder.finish(plan, done | do_work(work), changed=start.changed)
    return plan, work


def draw(path: Path, colour: str, size: tuple[int, int] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    seconds = next(_TIMES)
    os.utime(path, (seconds, seconds))  # another time for each, even if the disk's clock is coarse


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def rows(output: Path) -> list[dict[str, object]]:
    """Return the rows of all shards, as a reader of `part-*.parquet` gets them."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])
    return table.replace_schema_metadata(None).to_pylist()


def ids(output: Path) -> list[object]:
    return [row["id"] for row in rows(output)]


OLD = ["a/0", "a/2", "a/4", "a/6", "b/1", "b/3", "b/5"]
OLD_SHARDS = [f"part-{number:05}-of-00003.parquet" for number in range(3)]


def test_append_new_photos_become_another_generation_and_old_shards_stay(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(photos, output, append=True)  # there is nothing yet
    before = contents(output)
    for number in range(4):
        draw(photos / "a" / f"new{number}.png", "red")
    (photos / "a" / "2.jpg").unlink()
    run(photos, output, append=True)
    after = contents(output)
    assert {name for name in before if after[name] != before[name]} == {
        "_SUCCESS.json",
        "_plan.json",
        "_manifest.arrow",
    }
    assert sorted(name for name in after.keys() - before.keys() if name.endswith(".parquet")) == [
        "part-g0001-00000-of-00002.parquet",
        "part-g0001-00001-of-00002.parquet",
    ]
    new = [f"a/new{number}" for number in range(4)]
    assert ids(output) == OLD + new  # a/2 is gone, and its row stays
    draw(photos / "c.png", "blue")
    run(photos, output, append=True)
    assert ids(output) == [*OLD, *new, "c"]
    assert (output / "part-g0002-00000-of-00001.parquet").exists() and (output / "masks" / "c.png").exists()


def test_append_nothing_new_changes_nothing(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    draw(photos / "c.png", "blue")
    run(photos, tmp_path / "out", append=True)
    before = contents(tmp_path / "out")
    for append in (True, False):
        _, work = run(photos, tmp_path / "out", append=append)
        assert not work.shards
    assert differing(contents(tmp_path / "out"), before) == []


def test_append_same_generations_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    for new in ("c", "d"):
        for output in outputs:
            run(photos, output, append=True)
        draw(photos / f"{new}.png", "red")
    for output in outputs:
        run(photos, output, append=True)
    assert differing(contents(outputs[0]), contents(outputs[1])) == []


@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("step", [*range(12), 15])
def test_append_killed_at_each_step_next_start_gives_the_same_bytes(
    step: int, append: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --append, too, what a killed start has begun is finished."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for output in (killed, whole):
        run(photos, output)
    draw(photos / "a" / "0.jpg", "lime")
    for name in ("c", "d", "e", "f"):
        draw(photos / f"{name}.png", "red")
    run(photos, whole, append=True)
    with monkeypatch.context() as patched:
        kill_at_step(patched, step)
        # _SUCCESS.json, the manifest, the plan, a mask and the shard of the changed photo, four masks and two shards
        # of the new ones, the manifest, _SUCCESS.json
        if step < 13:
            with pytest.raises(KeyboardInterrupt):
                run(photos, killed, append=True)
        else:
            run(photos, killed, append=True)
    ids_now = ids(killed)
    assert len(ids_now) == len(set(ids_now)) and set(OLD) <= set(ids_now)
    if not append and step < 3:  # the new photos were not yet in the plan
        with pytest.raises(InputError, match="it has other photos than --images"):
            run(photos, killed)
    else:
        run(photos, killed, append=append)
        assert differing(contents(killed), contents(whole)) == []


def test_append_changed_photo_is_predicted_again_in_its_place(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(photos, output, outputs=Outputs(overlay=True))
    before, files_before = rows(output), contents(output)
    draw(photos / "a" / "2.jpg", "red", (12, 34))
    _, work = run(photos, output, append=True, outputs=Outputs(overlay=True))
    assert work.again == {0: [1]} and not work.missing
    after, files_after = rows(output), contents(output)
    assert [old["id"] for old, new in zip(before, after, strict=True) if old != new] == ["a/2"]
    assert (after[1]["height"], after[1]["width"]) == (34, 12)
    others = ["_manifest.arrow", "masks/a/2.png", "overlays/a/2.jpg", OLD_SHARDS[0]]
    assert differing(files_before, files_after) == others
    _, work = run(photos, output, append=True, outputs=Outputs(overlay=True))
    assert not work.shards


def test_append_changed_photo_that_is_broken_now_loses_its_mask(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    (photos / "a" / "2.jpg").write_bytes(b"broken")
    run(photos, tmp_path / "out", append=True)
    assert [row["id"] for row in rows(tmp_path / "out") if row["error"]] == ["a/2", "b/3"]
    assert not (tmp_path / "out" / "masks" / "a" / "2.png").exists()
    summary = output_folder.total(output_folder.find_done(run(photos, tmp_path / "out")[0]))
    assert (summary.rows, summary.failed) == (7, 2)


def test_append_changed_photo_of_a_later_generation_is_found(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    for name in ("c", "d", "e", "f"):
        draw(photos / f"{name}.png", "red")
    run(photos, tmp_path / "out", append=True)
    draw(photos / "f.png", "blue")
    _, work = run(photos, tmp_path / "out", append=True)
    assert work.again == {4: [0]}
    last = pq.read_table(tmp_path / "out" / "part-g0001-00001-of-00002.parquet")
    assert last["class_pixels"].to_pylist() == [[0, 0, 600]]


def test_append_photo_with_another_extension_is_predicted_again(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    (photos / "b" / "3.jpg").unlink()
    draw(photos / "b" / "3.png", "red")
    assert run(photos, tmp_path / "out", append=True)[1].again == {1: [2]}
    assert not run(photos, tmp_path / "out", append=True)[1].shards
    [row] = [row for row in rows(tmp_path / "out") if row["id"] == "b/3"]
    assert row["image"] == str(photos / "b" / "3.png") and row["error"] is None


def test_append_changed_photo_of_a_lost_shard_is_predicted_with_the_shard(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    (tmp_path / "out" / OLD_SHARDS[0]).unlink()
    draw(photos / "a" / "2.jpg", "red")
    _, work = run(photos, tmp_path / "out", append=True)
    assert work.missing == [0] and not work.again and ids(tmp_path / "out") == OLD
    assert not run(photos, tmp_path / "out", append=True)[1].shards


def test_append_photo_whose_version_is_not_known_counts_as_unchanged(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version of an object that a table names is not known."""
    with monkeypatch.context() as patched:
        patched.setattr(local, "version", lambda _: "")
        run(photos, tmp_path / "unknown")
    run(photos, tmp_path / "known")
    draw(photos / "a" / "2.jpg", "red")
    assert not run(photos, tmp_path / "unknown", append=True)[1].shards
    with monkeypatch.context() as patched:
        patched.setattr(local, "version", lambda _: "")
        assert not run(photos, tmp_path / "known", append=True)[1].shards


def test_append_moved_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"--append: all photos of .*out are in another place now, such as .*elsewh"):
        run(tmp_path / "elsewhere", tmp_path / "out", append=True)


def test_append_other_settings_are_refused(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    draw(photos / "c.png", "blue")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=r"started with other settings: checkpoint_sha256 \(was c0ffee, now tea"):
        run(photos, tmp_path / "out", append=True, settings={"checkpoint_sha256": "tea"})
    assert differing(contents(tmp_path / "out"), before) == []


def test_append_list_of_another_plan_is_not_trusted(photos: Path, tmp_path: Path) -> None:
    """A start with --overwrite was killed after it had replaced the list, and before the plan."""
    draw(photos / "c.png", "blue")
    run(photos, tmp_path / "other", shard_size=2)
    (photos / "c.png").rename(photos / "e.png")
    run(photos, tmp_path / "out")
    (tmp_path / "out" / "_manifest.arrow").write_bytes((tmp_path / "other" / "_manifest.arrow").read_bytes())
    draw(photos / "d.png", "blue")
    with pytest.raises(InputError, match="it has other photos than --images"):
        run(photos, tmp_path / "out", append=True)


def test_append_job_killed_before_its_first_shard_begins_anew(photos: Path, tmp_path: Path) -> None:
    output_folder.begin(make_plan(photos, tmp_path / "out"))
    (tmp_path / "out" / "_manifest.arrow").unlink()
    draw(photos / "c.png", "blue")
    run(photos, tmp_path / "out", append=True)
    run(photos, tmp_path / "fresh")
    assert differing(contents(tmp_path / "out"), contents(tmp_path / "fresh")) == []


def test_retry_errors_only_failed_photos_are_predicted_and_the_bytes_are_of_a_fresh_job(
    photos: Path, tmp_path: Path
) -> None:
    run(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    draw(photos / "b" / "3.jpg", "red")
    _, work = run(photos, tmp_path / "out", retry_errors=True)
    assert work.again == {1: [2]} and not work.missing
    after = contents(tmp_path / "out")
    assert {name for name in after if after[name] != before.get(name)} == {
        "_SUCCESS.json",
        OLD_SHARDS[1],
        "masks/b/3.png",
    }
    run(photos, tmp_path / "fresh")
    without = {files.PREDICTION_MANIFEST: b""}  # its version is that of the first start, so --append finds the change
    assert differing(after | without, contents(tmp_path / "fresh") | without) == []


def test_retry_errors_photo_that_fails_again_keeps_its_row(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    _, work = run(photos, tmp_path / "out", retry_errors=True)
    assert work.again == {1: [2]}
    assert differing(contents(tmp_path / "out"), before) == []


def test_find_again_shard_retried_meanwhile_by_an_orphan_is_left_alone(photos: Path, tmp_path: Path) -> None:
    """A worker of a killed driver may write a shard after the next start has read its footer."""
    plan, _ = run(photos, tmp_path / "out")
    done = output_folder.find_done(plan)
    draw(photos / "b" / "3.jpg", "red")
    do_work(Work(plan, [], {1: [2]}))
    assert output_folder.find_again(existing.find_start(plan), done, retry_errors=True) == {}


def test_write_shard_replaced_meanwhile_is_an_error(photos: Path, tmp_path: Path) -> None:
    plan, _ = run(photos, tmp_path / "out")
    shard = tmp_path / "out" / OLD_SHARDS[1]
    shard.write_bytes((tmp_path / "out" / OLD_SHARDS[0]).read_bytes())
    pq.write_table(pq.read_table(shard).replace_schema_metadata({"petseg.plan": "another"}), shard)
    with pytest.raises(OSError, match="another job has been writing there"):
        do_work(Work(plan, [], {1: [0]}))
