"""Output to a terminal: guarded streams, a console that takes text as text, progress."""
