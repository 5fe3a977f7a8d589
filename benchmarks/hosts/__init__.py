"""Several hosts on one machine, for tests and for the fault matrix."""
