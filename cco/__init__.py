"""Exact streaming CCO: configuration, events, retention, edits, adjacency and rows, batch rebuild. Pure: no I/O."""
