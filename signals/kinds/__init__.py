"""One file for each kind of signal; `signals.registry` lists them."""
