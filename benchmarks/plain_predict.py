"""Predict the masks of a folder with plain PyTorch, as one would write it in an hour: the peer of `predict_peers.py`.

python plain_predict.py --checkpoint RUN --photos FOLDER --output FOLDER

A DataLoader decodes in one process per core. The network takes batches of 32, in bf16 if the processor supports it.
Threads save the masks. The network is petseg's own, with its optimizations, so that only the code around it differs.
There is no error handling: a photo that cannot be decoded ends the program, and a killed program starts from scratch.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from petseg.models import checkpoint, precision

BATCH = 32


class Photos(Dataset[tuple[Tensor, int, int, str]]):
    def __init__(self, photos: list[Path], size_hw: tuple[int, int]) -> None:
        self.photos = photos
        self.size_hw = size_hw

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, str]:
        photo = Image.open(self.photos[index]).convert("RGB")
        height, width = self.size_hw
        pixels = np.array(photo.resize((width, height), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels), photo.height, photo.width, self.photos[index].stem


def save(logits: Tensor, height: int, width: int, path: Path) -> None:
    logits = F.interpolate(logits[None], (height, width), mode="bilinear")
    Image.fromarray(logits[0].argmax(0).to(torch.uint8).numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    device, cores = torch.device("cpu"), len(os.sched_getaffinity(0))
    found = checkpoint.find(given.checkpoint)
    model = checkpoint.load_model(found).eval()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in the stubs
    dtype = precision.resolve("auto", device)
    photos = Photos(sorted(given.photos.iterdir()), found.model.image_size)
    given.output.mkdir()
    started = time.perf_counter()
    with torch.inference_mode(), ThreadPoolExecutor(cores) as pool:
        saving = []
        for pixels, heights, widths, stems in DataLoader(photos, BATCH, num_workers=cores):
            with precision.autocast(dtype, device):
                logits = model(pixels.permute(0, 3, 1, 2)).float()
            sizes = zip(heights.tolist(), widths.tolist(), strict=True)
            for of_photo, (height, width), stem in zip(logits, sizes, stems, strict=True):
                saving.append(pool.submit(save, of_photo, height, width, given.output / f"{stem}.png"))
        for one in saving:
            one.result()
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
