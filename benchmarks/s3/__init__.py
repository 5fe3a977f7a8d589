"""An S3 server and a bad network before it, for tests and for the fault matrix."""
