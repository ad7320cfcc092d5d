"""Packages that are installed: ours come first, and one that is missing names its extra.

`own_packages.py` imports the standard library alone: it runs before everything else. Not here: what a package is used for.
"""
