"""The command line, YAML pipelines, and what joins the two stages.

The only package that parses settings, prints, and knows of both stages. A command parses, calls one
function of the same meaning, prints, and exits: 0 done, 1 a bug, 2 the user can mend it.
"""
