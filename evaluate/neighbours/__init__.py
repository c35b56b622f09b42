"""Finding and keeping the nearest neighbours: proposed, rescored, certified, the same to the bit everywhere."""
