"""What a model answers: a file for each task, and the table of them."""
