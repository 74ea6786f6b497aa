"""Reading text: one normalised view, many words at once, patterns, detectors, an estimate of tokens."""
