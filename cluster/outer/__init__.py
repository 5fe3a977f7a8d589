"""The outer steps between silos, as the driver of their run takes them."""
