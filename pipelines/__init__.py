"""The command line, YAML pipelines, and what joins the two stages.

The only package that parses settings, prints, and knows of both stages. A command parses its options, calls
one function, prints, and exits with 0 when done, 1 for a bug, 2 for an error that the user can fix.
"""
