"""Measure ingest: pairs per second from files to batches in the training worker, compared with other ways.

python benchmarks/ingest.py --images FOLDER --masks FOLDER

Each round runs every way in its own process, in alternating order (ours, peers; then peers, ours), on photos of two
sizes, to batches of 32 pairs of 160 × 160, uint8, on the CPU. Figures are medians of the rounds (lowest to highest).
Ratios are taken round by round.

- ours: `decode`, then the batches of `rank_data.RankData`, in the driver, which is on the worker's machine. The first
  epoch is the decoding, the creation of the rank's data and the batches; later epochs are batches alone. Photos are
  decoded in blocks of 81, so a few hundred photos keep only a few cores busy.
- DataLoader: torch's, with one persistent worker per core, each four batches ahead. Its pairs are decoded by our
  `pairs.decode_pair`, so that only the data path differs. It decodes again in every epoch.
- DataLoader, torchvision: the same with torchvision's decoders and resizing, as one would write it without petseg. It
  decodes JPEGs at full size and checks nothing: not the EXIF orientation, the sizes, or the values of a mask.
- read_images: Ray Data's own reader, with two tasks per core (its default is one task per file or few files, which is
  several times slower). It does not pair masks, so it does half of the work: photos alone, unshuffled, read again in
  every epoch.

The best peer is the one with the highest median in the row. The process that takes the batches has torch's default
number of threads, as a training worker has.

Not measured:

- start-up. Ray and all workers have started and imported their modules before the clock starts, because a few pairs
  went through each way before. The list of files is read before, too.
- disks. The files are links to a few originals, which are soon in memory.
- the competition with a network that trains at the same time. A way that decodes in every epoch takes cores from it.

Small photos enlarged to 2000 × 1500 are smoother than a camera's, and have fewer bytes.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import beside
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from petseg.config.base import MAX_PIXELS
from petseg.data import demo, labels, manifest
from petseg.data.pairs import decode_pair

SIZES = {(500, 375): 1, (2000, 1500): 16}
"""(width, height) of the photos, and the divisor of their number. A large photo takes much longer than a small one."""

ORIGINALS = 32
"""Number of different photos of each size. All others are links to them."""

GRAIN = 13.0
"""Standard deviation of the noise on drawn photos (0..255). JPEGs then have 85 kB at 500 × 375, as real ones."""

IMAGE_SIZE = (160, 160)
BATCH = 32
LABEL_MAP = labels.LabelMap.parse("", 3)
FIRST, LATER = "first epoch, pairs/s", "later epochs, pairs/s"

Decode = Callable[[str, str], tuple[Tensor, Tensor]]
"""Function from the files of a photo and its mask to pixels and class ids."""

Epoch = Callable[[int], Iterable[Sequence[Tensor]]]
"""Function from the number of an epoch to its batches: photos, then masks if there are any."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photos, resized to the two sizes. Default: drawn photos")
    parser.add_argument("--masks", type=Path, help="folder of their trimaps: 1 pet, 2 background, 3 border")
    parser.add_argument("--pairs", type=int, default=2560, help="pairs of 500 × 375; a sixteenth for 2000 × 1500")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each way in each round")
    parser.add_argument("--loader-workers", type=int, default=len(beside.cores()), help="default: one per core")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        pairs = manifest.discover(str(given.folder / "images"), str(given.folder / "masks"))
        print(json.dumps(measure(WAYS[given.way](pairs, given.loader_workers), pairs.num_rows, given.epochs)))
        return
    if (given.images is None) != (given.masks is None):
        parser.error("--images and --masks: give both or neither")
    if given.epochs < 2 or given.pairs < max(SIZES.values()):
        parser.error("give at least --epochs 2 and --pairs 16")
    beside.quiet_ray()
    print(beside.about())
    with tempfile.TemporaryDirectory(prefix="petseg-ingest-") as name:
        for size, divisor in SIZES.items():
            count = given.pairs // divisor
            count -= count % min(BATCH, count)  # some ways drop the last, incomplete batch
            kept = min(count, ORIGINALS)
            originals = opened(given.images, given.masks, kept) if given.images else drawn(kept, size)
            folder = Path(name) / f"{size[0]}x{size[1]}"
            kilobytes = write_pairs(folder, size, count, originals)
            rounds = [one_round(folder, number, given) for number in range(given.rounds)]
            print(f"\n{count} pairs of {size[0]} × {size[1]}, {kilobytes:,.0f} kB a photo; rounds: {given.rounds}\n")
            print(table(rounds), flush=True)


def one_round(folder: Path, number: int, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run every way once. Return its rates by row of the table."""
    command = [sys.executable, __file__, "--folder", str(folder), "--epochs", str(given.epochs)]
    command += ["--loader-workers", str(given.loader_workers), "--way"]
    order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
    return {way: beside.answer([*command, way]) for way in order}


def table(rounds: list[dict[str, dict[str, float]]]) -> str:
    ours, *peers = WAYS
    lines = []
    for row in (FIRST, LATER):
        rates = {way: [done[way][row] for done in rounds] for way in WAYS}
        best = max(peers, key=lambda way: statistics.median(rates[way]))
        ratios = [beside.ratio(rates[ours], rates[peer]) for peer in (peers[0], best)]
        lines.append([row, *(beside.cell(rates[way]) for way in WAYS), *ratios])
    return beside.table(["", *WAYS, f"{ours} ÷ {peers[0]}", f"{ours} ÷ the best peer"], lines)


def measure(epoch: Epoch, count: int, epochs: int) -> dict[str, float]:
    """Return pairs per second of the first epoch, and the median of the later ones."""
    rates = []
    for number in range(epochs):
        started = time.perf_counter()
        rows = sum(len(photos) for photos, *_ in epoch(number))
        rates.append(rows / (time.perf_counter() - started))
        assert rows == count, f"{rows} of {count} pairs"
    return {FIRST: rates[0], LATER: statistics.median(rates[1:])}


def ours(pairs: pa.Table, _workers: int) -> Epoch:
    from petseg.cluster import connect
    from petseg.pipelines.decode import decode
    from petseg.training.rank_data import RankData

    connect.connect()
    decode_part = functools.partial(decode, image_size=IMAGE_SIZE, label_map=LABEL_MAP)
    decode_part(few(pairs))

    @functools.cache
    def whole() -> RankData:
        return RankData(decode_part({"training": pairs})[0], 0, 1, torch.device("cpu"), float("inf"))

    return lambda number: whole().train_batches(batch_size(pairs), seed=0, epoch=number)


def read_images(pairs: pa.Table, _workers: int) -> Epoch:
    import ray.data

    from petseg.cluster import connect

    connect.connect()
    read = functools.partial(ray.data.read_images, size=IMAGE_SIZE, mode="RGB")
    warming = [part["image"][0].as_py() for part in few(pairs).values()]
    list(read(warming, override_num_blocks=len(warming)).iter_torch_batches(batch_size=1))
    photos = read(str(Path(pairs["image"][0].as_py()).parent), override_num_blocks=2 * len(beside.cores()))
    return lambda _: ((some["image"],) for some in photos.iter_torch_batches(batch_size=batch_size(pairs)))


def batch_size(pairs: pa.Table) -> int:
    return min(BATCH, pairs.num_rows)


def few(pairs: pa.Table) -> dict[str, pa.Table]:
    """Return two parts of a single pair per core. While one of Ray's workers imports, the others get a pair too."""
    return {str(number): pairs.slice(number % pairs.num_rows, 1) for number in range(2 * len(beside.cores()))}


def data_loader(pairs: pa.Table, workers: int, decode: Decode) -> Epoch:
    loader = DataLoader(
        Pairs(pairs, decode),
        batch_sampler=WarmedBatches(pairs, workers),
        num_workers=workers,
        persistent_workers=True,
        prefetch_factor=4,
    )
    assert len(list(loader)) == workers
    return lambda _: loader


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, pairs: pa.Table, decode: Decode) -> None:
        self._files = list(zip(pairs["image"].to_pylist(), pairs["mask"].to_pylist(), strict=True))
        self._decode = decode

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._decode(*self._files[index])


class WarmedBatches(Sampler[list[int]]):
    """Sampler of all pairs in random order. Its first pass has one pair per worker, to start the workers."""

    def __init__(self, pairs: pa.Table, workers: int) -> None:
        self._count, self._batch, self._cold_workers = pairs.num_rows, batch_size(pairs), workers

    def __iter__(self) -> Iterator[list[int]]:
        if self._cold_workers:
            yield from ([number % self._count] for number in range(self._cold_workers))
            self._cold_workers = 0
        else:
            yield from (rows.tolist() for rows in torch.randperm(self._count).split(self._batch))


def decode_as_ours(photo: str, mask: str) -> tuple[Tensor, Tensor]:
    contents = Path(photo).read_bytes(), Path(mask).read_bytes()
    pair = decode_pair(*contents, IMAGE_SIZE, LABEL_MAP, MAX_PIXELS)
    return torch.tensor(pair.photo.pixels), torch.tensor(pair.class_ids)


def decode_by_torchvision(photo: str, mask: str) -> tuple[Tensor, Tensor]:
    pixels = resize(decode_image(photo, ImageReadMode.RGB), list(IMAGE_SIZE), antialias=True)
    raw = resize(decode_image(mask), list(IMAGE_SIZE), InterpolationMode.NEAREST_EXACT)
    return pixels, raw[0] - 1


WAYS: dict[str, Callable[[pa.Table, int], Epoch]] = {
    "ours": ours,
    "DataLoader": functools.partial(data_loader, decode=decode_as_ours),
    "DataLoader, torchvision": functools.partial(data_loader, decode=decode_by_torchvision),
    "read_images": read_images,
}


def write_pairs(
    folder: Path, size: tuple[int, int], count: int, originals: Iterable[tuple[Image.Image, Image.Image]]
) -> float:
    """Write `count` photos and masks of `size` (width, height) to a folder. Return the mean kilobytes of a photo."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    files: list[tuple[Path, Path]] = []
    for number, (photo, mask) in enumerate(originals):
        files.append((folder / "images" / f"{number:06}.jpg", folder / "masks" / f"{number:06}.png"))
        photo.resize(size).save(files[-1][0], quality=90)
        mask.resize(size, Image.Resampling.NEAREST).save(files[-1][1])
    for number in range(len(files), count):
        for original in files[number % len(files)]:
            original.with_stem(f"{number:06}").hardlink_to(original)
    return statistics.fmean(path.stat().st_size for path in (folder / "images").iterdir()) / 1000


def opened(photos: Path, masks: Path, count: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    for pair in manifest.sample(manifest.discover(str(photos), str(masks)), count).to_pylist():
        with Image.open(pair["image"]) as photo, Image.open(pair["mask"]) as mask:
            yield photo.convert("RGB"), Image.fromarray(np.asarray(mask))  # keep palette indices, not colours


def drawn(count: int, size: tuple[int, int]) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Return drawn pairs. Noise like fur or grass is added to the photos; without it they have a third of the bytes."""
    rng = np.random.default_rng(1)
    for number in range(count):
        photo, mask = demo.draw_pair(number, seed=1)
        grain = rng.normal(0, GRAIN, size[::-1]).astype(np.float32)
        pixels = np.clip(np.asarray(photo.resize(size)) + grain[..., None], 0, 255)
        yield Image.fromarray(pixels.astype(np.uint8)), mask


if __name__ == "__main__":
    main()
