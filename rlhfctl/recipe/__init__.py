"""Define the strict recipe: its sections and rules (schema.py), and how it is read from files (load.py)."""
