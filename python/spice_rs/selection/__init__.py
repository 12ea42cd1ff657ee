"""Picks from a source: what is asked for, what may be picked, the run, its result. `selection.py` is the way in."""
