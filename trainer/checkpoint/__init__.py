"""Sharded checkpoints: fragments, format, commit, load on any world size and ZeRO stage, export."""
