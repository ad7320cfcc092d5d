"""Files as people and steps meet them: exact JSON, lines of TOML and JSON for messages, private directories.

Not here: what a file means. Settings, golden files and lake files know that themselves.
"""
