"""Virtqueues (2.6 to 2.8): layouts, the compiled or interpreted loops, chains, and both halves of both rings."""
