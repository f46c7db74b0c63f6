"""Labelled images: what a split is, and one file for each source of them."""
