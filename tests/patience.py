"""How long tests wait for what happens soon: for minutes, should the machine be overloaded."""

PATIENCE = 600.0
"""Seconds after which a test gives up waiting for something. A bound against hanging, never a claim about speed."""
