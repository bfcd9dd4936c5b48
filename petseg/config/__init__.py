"""Settings: a frozen dataclass per job, those that travel with a checkpoint or a prepared set, their JSON form."""
