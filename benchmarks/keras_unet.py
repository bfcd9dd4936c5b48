"""The Keras example that this network comes from, rewritten as the peer of `train_cpu.py` and `predict_peers.py`.

python keras_unet.py train --pairs FILE          from files, as the example trains; FILE has photo TAB trimap per line
python keras_unet.py steps                       training and inference on a fixed array, without files
python keras_unet.py predict --photos FOLDER --output FOLDER      masks of all photos, as the example predicts

It runs in its own environment, with TensorFlow and without petseg. The last line of its output is JSON. Its epochs have
the same keys as a run's `metrics.jsonl`.

The example is https://keras.io/examples/vision/oxford_pets_image_segmentation/ as first published (2020): pixels
0..255, RMSprop, batches of 32 that a `Sequence` reads file by file. All other settings are Keras's defaults.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import keras  # pyright: ignore[reportMissingImports]
import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
from keras import layers  # pyright: ignore[reportMissingImports]
from PIL import Image

SIZE = (160, 160)
NUM_CLASSES = 3
BATCH = 32
LEARNING_RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "steps", "predict"])
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32], help="batch sizes of `steps`")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each kind in `steps`")
    parser.add_argument("--threads", type=int, default=0, help="number of threads. 0: TensorFlow's default")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    keras.utils.set_random_seed(1337)
    if given.what == "train":
        if given.pairs is None:
            parser.error("train needs --pairs")
        lines = [line.split("\t") for line in given.pairs.read_text().splitlines()]
        result = train([(photo, trimap) for photo, trimap in lines], given.epochs)
    elif given.what == "predict":
        if given.photos is None or given.output is None:
            parser.error("predict needs --photos and --output")
        result = predict(sorted(given.photos.iterdir()), given.output)
    else:
        result = steps(given.batches, given.steps)
    print(json.dumps({"tensorflow": tf.__version__, "keras": keras.__version__} | result))


def unet() -> keras.Model:
    """Return the network from float pixels (N, H, W, 3), 0..255, to class probabilities (N, H, W, C)."""
    pixels = keras.Input((*SIZE, 3))
    x = layers.Conv2D(32, 3, strides=2, padding="same")(pixels)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for width in (64, 128, 256):
        before = x
        for _ in range(2):
            x = layers.SeparableConv2D(width, 3, padding="same")(layers.Activation("relu")(x))
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(width, 1, strides=2, padding="same")(before)])
    for width in (256, 128, 64, 32):
        before = x
        for _ in range(2):
            x = layers.Conv2DTranspose(width, 3, padding="same")(layers.Activation("relu")(x))
            x = layers.BatchNormalization()(x)
        x = layers.UpSampling2D(2)(x)
        x = layers.add([x, layers.Conv2D(width, 1, padding="same")(layers.UpSampling2D(2)(before))])
    return keras.Model(pixels, layers.Conv2D(NUM_CLASSES, 3, activation="softmax", padding="same")(x))


def compiled() -> keras.Model:
    model = unet()
    model.compile(keras.optimizers.RMSprop(LEARNING_RATE), loss="sparse_categorical_crossentropy")
    return model


class Pairs(keras.utils.PyDataset):
    """Dataset of full batches, each read from its files on access. Keras reads a few ahead, in one thread."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__()
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs) // BATCH

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        photos = np.zeros((BATCH, *SIZE, 3), np.float32)
        trimaps = np.zeros((BATCH, *SIZE, 1), np.uint8)
        for i, (photo, trimap) in enumerate(self._pairs[index * BATCH : (index + 1) * BATCH]):
            photos[i] = keras.utils.load_img(photo, target_size=SIZE)
            trimaps[i, :, :, 0] = keras.utils.load_img(trimap, target_size=SIZE, color_mode="grayscale")
        return photos, trimaps - 1  # 1 pet, 2 background, 3 border


class Photos(keras.utils.PyDataset):
    """Dataset of batches of photos, read from their files on access. The last batch may be shorter."""

    def __init__(self, photos: list[Path]) -> None:
        super().__init__()
        self._photos = photos

    def __len__(self) -> int:
        return -(-len(self._photos) // BATCH)

    def __getitem__(self, index: int) -> np.ndarray:
        some = self._photos[index * BATCH : (index + 1) * BATCH]
        return np.stack([np.asarray(keras.utils.load_img(photo, target_size=SIZE), np.float32) for photo in some])


class Epochs(keras.callbacks.Callback):
    """Callback that records the loss and the time of each epoch."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self._images = images
        self._started = 0.0
        self.done: list[dict[str, float]] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._started
        assert logs is not None
        self.done.append(
            {
                "epoch": epoch + 1,
                "train_loss": float(logs["loss"]),
                "train_images_per_s": self._images / seconds,
                "seconds": seconds,
            }
        )


def train(pairs: list[tuple[str, str]], epochs: int) -> dict[str, object]:
    """Train from files. A step on one batch builds the graph first, because that belongs to the start-up."""
    model, data = compiled(), Pairs(pairs)
    model.fit(Pairs(pairs[:BATCH]), epochs=1, verbose=0)
    watch = Epochs(len(data) * BATCH)
    model.fit(data, epochs=epochs, callbacks=[watch], verbose=0)
    return {"parameters": model.count_params(), "epochs": watch.done}


def predict(photos: list[Path], output: Path) -> dict[str, object]:
    """Predict all photos, then resize their masks one by one to the photo's size and save them.

    The example only shows a few masks at the network's size; a user who needs masks adds the last two steps. One batch
    builds the graph first, because that belongs to the start-up. The network is untrained, which does not change its
    speed.
    """
    model = compiled()
    model.predict(Photos(photos[:BATCH]), verbose=0)
    output.mkdir()
    started = time.perf_counter()
    probabilities = model.predict(Photos(photos), verbose=0)
    for photo, of_photo in zip(photos, probabilities, strict=True):
        mask = Image.fromarray(of_photo.argmax(-1).astype(np.uint8))
        with Image.open(photo) as original:
            mask.resize(original.size, Image.Resampling.NEAREST).save(output / f"{photo.stem}.png")
    return {"seconds": time.perf_counter() - started}


def steps(batches: list[int], count: int) -> dict[str, object]:
    """Return images per second of `train_on_batch` and of `predict` for each batch size, on pixels in memory."""
    generator = np.random.default_rng(0)
    training, inference = {}, {}
    for batch in batches:
        model = compiled()
        photos = generator.integers(0, 256, (batch, *SIZE, 3)).astype(np.float32)
        classes = generator.integers(0, NUM_CLASSES, (batch, *SIZE, 1)).astype(np.uint8)
        seconds = timed(lambda m=model, x=photos, y=classes: [m.train_on_batch(x, y) for _ in range(count)])
        training[batch] = batch * count / seconds
        many = np.concatenate([photos] * count)
        seconds = timed(lambda m=model, x=many, size=batch: m.predict(x, batch_size=size, verbose=0))
        inference[batch] = batch * count / seconds
    return {"training": training, "inference": inference}


def timed(work: Callable[[], object]) -> float:
    """Run `work` twice and return the seconds of the second run. The first builds the graph."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
