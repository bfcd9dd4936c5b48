"""Settings: one frozen dataclass per job, those saved with a checkpoint or a prepared set, and their JSON form."""
