"""What `render` can write: one module for each gateway, each turning an engine and a place into configuration."""
