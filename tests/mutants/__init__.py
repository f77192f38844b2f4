"""Devices, drivers and ring kernels that are broken on purpose, each in one clause, for the public suite to find.

`registry` says what a mutant is, `edits` breaks a function by its source, the other modules hold the mutants by area.
"""
