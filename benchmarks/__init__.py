"""Measurements: one script per question, dated results in `results/`."""
