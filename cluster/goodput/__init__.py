"""What a run's time went to, and why: pure readings of what it has written down."""
