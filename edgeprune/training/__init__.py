"""Training: the loop, what training images go through, what makes accuracy recover."""
