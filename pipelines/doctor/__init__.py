"""`bench doctor`: whether this machine and this installation have what bench needs, and what to do if not."""
