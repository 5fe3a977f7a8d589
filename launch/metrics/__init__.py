"""What a Prometheus scrapes of a run: a reading of its events, and the server that shows it."""
