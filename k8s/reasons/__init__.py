"""What stands in the way of a run, read from the objects of one controller each. Pure."""
