"""One small Faust app for each row of docs/reference/faust.md; `test_rows.py` runs them as workers.

Each says what it shows (`FEATURE`, `GROUP`), what becomes of it here (`VERDICT`: works, different or refused, and `HOW`), and,
unless its test drives it, what comes out for `numbers()`: `EXPECTED`, by key in order (a dict) or in any order (a list).
"""
