"""A run of silos: several runs that share their weights every so many steps, and the driver that keeps them together."""
