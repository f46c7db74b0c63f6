"""Channels, attention heads and MLP widths physically removed."""
