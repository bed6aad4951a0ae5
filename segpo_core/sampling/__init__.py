"""Completions from a policy: groups, chains, trees; prefixes are computed once."""
