"""Photos in, a trained U-Net, masks out: on a laptop first, on a Ray cluster after.

Nothing is imported here, so that `import petseg.config` costs milliseconds and only what a job uses is loaded.
"""

__version__ = "0.1.0"
