"""The replica: another DynamoDB table that is kept equal to a captured one.

`changes.py` is pure, `table.py` writes with conditions, `verify.py` compares.
"""
