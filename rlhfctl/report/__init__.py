"""The report of runs: one self-contained HTML page, Markdown, JSON, and pictures. Reads run folders, never models."""
