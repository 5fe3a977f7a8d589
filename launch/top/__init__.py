"""`zerofleet top`: a run on one screen, while it goes on."""
