"""What disks, clusters, other programs and hostile people do to a run, by seed.

`pytest tests/torture` is the short form; `make torture` the long one, whose figures go into benchmarks/RESULTS.md.
"""
