"""Torch models: built by name, given weights, counted, resized to what pruning left."""
