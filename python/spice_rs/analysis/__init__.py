"""What a selection is worth, what its pool holds, and how methods compare."""
