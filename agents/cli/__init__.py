"""The `cco` command, one file per group of commands."""
