"""Ray: start or join it, query its resources. Knows nothing of the jobs."""
