"""Download a dataset, draw masks from labels, choose photos to label, check a dataset, or decode one.

python jobs/prepare.py oxford-pets --output pets                            the Oxford-IIIT Pet Dataset, for training
python jobs/prepare.py masks --from coco --images photos --labels labels.json --unlabelled background --output masks
python jobs/prepare.py select --from predicted --labelled masks --output next --tool coco
python jobs/prepare.py check --images photos --masks masks --output checked    a report of its problems, before training
python jobs/prepare.py shards --images photos --masks masks --output set       Parquet files of decoded pairs
ray job submit --working-dir . -- python jobs/prepare.py shards …           on a cluster
"""

from typing import NoReturn

from petseg import cli
from petseg.config.labelling import MasksConfig, SelectConfig
from petseg.config.prepare import CheckConfig, OxfordConfig, ShardsConfig


def main() -> None:
    """Parse `sys.argv` and run the command."""
    commands = {
        "oxford-pets": OxfordConfig,
        "masks": MasksConfig,
        "select": SelectConfig,
        "check": CheckConfig,
        "shards": ShardsConfig,
    }
    config = cli.parse_subcommand("prepare", commands, about=__doc__)
    # Imported here, because each command needs other modules.
    if isinstance(config, OxfordConfig):
        from petseg.jobs.prepare.oxford_pets import download

        download(config)
    elif isinstance(config, MasksConfig):
        from petseg.jobs.prepare.masks import draw_masks

        draw_masks(config)
    elif isinstance(config, SelectConfig):
        from petseg.jobs.prepare.select import select_photos

        select_photos(config)
    elif isinstance(config, CheckConfig):
        from petseg.jobs.prepare.check import check_set

        check_set(config)
    else:
        from petseg.jobs.prepare.shards import make_shards

        make_shards(config)


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
