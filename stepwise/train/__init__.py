"""Training of stepwise policies. Serving never imports this package; its extra needs are `pip install -e .[train]`."""
