"""Loading weights: checkpoints are read safely, recognized by their keys, and loaded completely or not at all."""
