"""Runs of which the controller and its policies are real and nothing else: nodes and ranks are values, time is a number."""
