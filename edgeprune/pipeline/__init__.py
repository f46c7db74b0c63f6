"""The road a model takes, from a recipe to files that meet a budget."""
