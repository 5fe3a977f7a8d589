"""Training loops of other systems over one task, each a rank that takes its turn: see `systems.py`."""
