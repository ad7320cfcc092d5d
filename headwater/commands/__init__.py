"""The commands of `headwater`, one group a file. They parse, print and choose exit codes.

Not here: what they find and do (`pipeline/operate`, `pipeline/flows`, `pipeline/replay`).
"""
