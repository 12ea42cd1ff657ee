"""Examples → projected per-sample gradients → store. Needs torch; `extractor.py` is the way in."""
