"""What the user touches: command line, job config, recipes, backends, run report."""
