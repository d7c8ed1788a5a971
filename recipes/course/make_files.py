"""Write the data files of the course's exercises beside this script, always the same."""

from __future__ import annotations

import json
from pathlib import Path

from rlhfctl.tools.course.world import files

if __name__ == "__main__":
    for name, rows in files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (Path(__file__).resolve().parent / name).write_text(text, encoding="utf-8")
