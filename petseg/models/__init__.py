"""The network: its layers, its precision, its checkpoints, its export. No Ray."""
