"""The runtime of the neural signals: text to ids, ids to probabilities and embeddings, off the event loop."""
