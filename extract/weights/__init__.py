"""How a model gets its weights: checkpoints read safely, recognised by their keys, and loaded whole or not at all."""
