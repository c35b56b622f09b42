"""Classification by nearest neighbours: protocols, votes, accuracies, predictions, few-shot, retrieval."""
