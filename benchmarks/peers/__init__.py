"""What zerofleet is measured against: the same model under other launchers, each as its documentation shows."""
