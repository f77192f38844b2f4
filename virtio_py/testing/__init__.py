"""The public test bench."""
