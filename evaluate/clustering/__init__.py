"""k-means, and how well its clusters match the classes."""
