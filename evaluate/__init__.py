"""Stage two: blocks of features -> neighbours -> votes -> accuracies, and k-means -> cluster metrics.

Reads a feature set and knows nothing of models or images; never imports torch.
`featbench.evaluate.knn.classification` is the entry point; the other modules hold the steps.
"""
