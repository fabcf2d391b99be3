"""A network that predicts the embedding rows of any token from the student's rows of its pieces, and its training."""
