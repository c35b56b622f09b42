"""What is evaluated: layers of a feature set, stored or derived, and the rows and labels that take part."""
