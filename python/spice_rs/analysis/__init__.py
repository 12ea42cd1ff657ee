"""What a selection is worth, and whether it can be trusted."""
