"""Shells around the engine: the embedded product, durable state, files, and the `cco` command."""
