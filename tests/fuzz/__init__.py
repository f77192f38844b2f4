"""Coverage-guided fuzzing of everything that parses what a peer wrote: `python -m tests.fuzz --help`."""
