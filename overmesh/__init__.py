"""Overmesh joins hosts into one overlay network."""

__version__ = "0.1.0"
