"""A torch module in, a deployable Core ML or LiteRT file and its facts out.

Knows nothing of pruning, recipes or reports. The heavy frameworks are imported by the functions that
need them, so importing this package costs nothing.
"""
