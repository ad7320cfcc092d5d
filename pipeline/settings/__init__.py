"""The settings: one module for each part of headwater.toml, `root.py` for the whole, `load.py` to read it.

Typed, and read once, at the edge. Not here: what a setting does.
"""
