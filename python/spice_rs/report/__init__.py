"""What a selection looks like, for people."""
