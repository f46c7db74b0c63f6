"""The report: records of measured files, the budget they must meet, and their pages."""
