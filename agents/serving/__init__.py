"""`cco serve`: embedded, with an engine of its own, or beside workers."""
