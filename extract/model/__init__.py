"""Which model runs and where it is tapped: trunks, heads, the names of taps, poolings."""
