"""Where a job can run: one module per backend."""
