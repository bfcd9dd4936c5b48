"""Photos, masks and labels: which files there are, and files to arrays. No Ray, no network."""
