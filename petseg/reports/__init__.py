"""Self-contained HTML pages, and the model card."""
