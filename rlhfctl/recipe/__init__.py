"""The strict recipe: what it may say (schema.py) and how files become one (load.py)."""
