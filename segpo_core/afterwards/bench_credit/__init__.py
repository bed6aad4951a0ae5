"""How right a method's credit is: completions whose true values are known, every method's credit beside them.

It is part of the package, not of benchmarks/, so that `segpo bench-credit` works where only the package is installed.
"""
