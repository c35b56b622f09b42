"""The input of an evaluation: layers, stored, derived or in memory, and which rows and labels to use."""
