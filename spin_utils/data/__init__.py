"""Demonstrations (x, y) and preference pairs: read, generated, checked row by row, and turned into token ids.

Doors: `demonstrations.load` (the splits of a profile), `preferences.load` (pairs for DPO), `templates` (text to token
ids and back) and `families` (generated tasks with their graders).
"""
