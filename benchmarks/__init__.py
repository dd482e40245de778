"""The project's numbers, each beside its peer: `python -m benchmarks --list`, and README.md in this folder."""
