"""`zerofleet chaos`: a run under a fault plan, and the proof that nothing was lost."""
