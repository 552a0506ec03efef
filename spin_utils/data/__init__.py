"""Demonstrations (x, y) and preference pairs: reading, generating, checking row by row, and conversion to token ids.

Doors: `demonstrations.load` (the splits of a profile), `preferences.load` (pairs for DPO), `templates` (text to token
ids and back) and `families` (generated tasks with their graders).
"""
