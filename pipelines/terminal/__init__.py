"""Output to a terminal: guarded streams, tables, progress."""
