"""Names of the files and folders that jobs leave, which other jobs and people read."""

import re

CONFIG = "config.json"
"""File name of the resolved settings of a job, which --config reads; in a checkpoint, of the network's settings."""

REPORT = "report.html"
"""File name of the HTML report of a training run, an evaluation, a prediction or a check."""

STATUS = "status.json"
"""File name of the status of the job that writes to a folder, or has written there last."""

CLASSES = "classes.json"
"""File name of the description of the classes in a folder of masks."""

PHOTOS = "photos.csv"
"""File name of the table of the photos that a folder of masks belongs to, and of those that were selected."""

CHANGES = "changes.csv"
"""File name of the table of the masks that merges of labels have added or changed."""

LOCK = ".petseg-lock"
"""File name of the lock on a local folder that a job writes to, or of the lease in S3."""

TRACES = (LOCK, STATUS)
"""Names of the files that say which job writes to a folder. A folder that holds no others is as good as empty."""

# In the folder of a training run
RUN_METRICS = "metrics.jsonl"
RUN_MANIFEST = "manifest.parquet"
CHECKPOINTS_FOLDER = "checkpoints"

# In the folder of a prediction
PLAN = "_plan.json"
# Lists of photos do not end in .parquet: `*.parquet` must read the shards alone.
PREDICTION_MANIFEST = "_manifest.arrow"
OLD_PREDICTION_MANIFEST = "_manifest.parquet"
PREDICTION_SHARD = re.compile(r"part-(g\d{4,}-)?\d{5,}-of-\d{5,}\.parquet")
SUCCESS = "_SUCCESS.json"
MASK_FOLDER = "masks"
OVERLAY_FOLDER = "overlays"

# In the folder of a selection, with its own masks/
PHOTO_FOLDER = "photos"

# In the folder of a prepared set
DATASET = "dataset.json"
SET_MANIFEST = "_manifest.arrow"

# In the folder of an evaluation, a check and an export
METRICS = "metrics.json"
SCORES = "per_image.parquet"
EVALUATION_SHARDS = "_shards"
WORST_FOLDER = "worst"
CHECK = "check.parquet"
EXPORT_CHECKS = "checks.json"
MODEL_CARD = "MODEL_CARD.md"
