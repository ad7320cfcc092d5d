"""Metrics: every one that a worker has, declared once.

Not here: where they are counted, and the page that shows them (`pipeline/runtime/web.py`).
"""
