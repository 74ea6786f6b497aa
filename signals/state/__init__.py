"""What outlives a request: the store that replicas share, gauges of models, and what one session is."""
