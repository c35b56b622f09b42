"""`bench neighbours`: the nearest train images of one image, as a table, as JSON or as a picture."""
