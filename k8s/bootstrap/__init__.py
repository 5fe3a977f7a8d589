"""What must exist in a cluster before the first run, as documents for whoever owns it. Nothing here creates anything."""
