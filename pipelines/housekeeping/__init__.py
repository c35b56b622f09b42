"""Keeping a store in order: what is in it, how large it is, and what can go."""
