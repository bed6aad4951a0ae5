"""Which method learns what: short runs of every method on the demo's task, their curves, tables and claims.

It is part of the package, not of benchmarks/, so that `segpo bench-learn` works where only the package is installed.
"""
