"""Write config/default.toml and docs/reference/config.md from the table of fields in fl_queue/config/schema.py."""

from pathlib import Path

from fl_queue.config import rendering

ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    (ROOT / "config" / "default.toml").write_text(rendering.render_defaults(), encoding="utf-8")
    (ROOT / "docs" / "reference" / "config.md").write_text(
        rendering.render_reference(), encoding="utf-8"
    )
