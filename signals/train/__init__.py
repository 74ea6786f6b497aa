"""Builds every shipped model from public data: `python -m signals.train --data DIR`. Serving never imports this."""
