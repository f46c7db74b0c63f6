"""Pruning methods: patterns, criteria, schedules, and removed channels."""
