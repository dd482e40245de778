"""`python -m agents` is `cco`, wherever the console script is not on the path."""

from agents.cli.main import entry

entry()
