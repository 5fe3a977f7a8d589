"""Faults that somebody outside the run brings about: what a rank waits for at the gate, and what is done to the rest."""
