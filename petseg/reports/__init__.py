"""Self-contained HTML report pages, and the model card."""
