"""What is measured: of exported files, and of what variants get wrong."""
