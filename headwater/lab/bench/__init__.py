"""Benchmarks: the product beside the tightest loop by hand, beside textbook Faust and beside its peers, in one run."""
