"""The tasks by subject: typed wrappers with names, flags and help. All that they do is elsewhere."""
