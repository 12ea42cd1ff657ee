"""What a selection is worth: why each pick, what can be proven, and how methods and proxies compare."""
