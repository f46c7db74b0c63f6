"""Prune a vision model to a budget and measure the files that ship."""

__version__ = "0.1.0"
