"""Stage one: dataset -> transform -> trunk with taps -> pooling -> store.

Reads images and writes features; knows nothing of search. `featbench.extract.extraction` is the core loop,
the other modules are what it is made of. Importing this package imports no torch.
"""
