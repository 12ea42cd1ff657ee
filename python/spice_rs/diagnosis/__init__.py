"""`doctor`: whether the gradients of one's own model and data are what they should be. `doctor.py` is the way in."""
