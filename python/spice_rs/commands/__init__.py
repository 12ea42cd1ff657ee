"""The commands of `spice-rs`, one module for each step; `cli.py` puts them together."""
