"""Training: the loop, one worker's data and step, the run folder."""
