"""The gradient store and everything else that rows can be selected from, as arrays."""
