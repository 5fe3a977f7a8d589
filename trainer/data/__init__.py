"""Text to fixed-length token sequences, and their order."""
