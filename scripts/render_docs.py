"""Write config/default.toml and docs/reference/config.md, cli.md, redis.md and python.md from the code."""

from pathlib import Path

from fl_queue.config import rendering
from scripts import commands_reference, keys_reference, python_reference

ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    for name, text in {
        "config/default.toml": rendering.render_defaults(),
        "docs/reference/config.md": rendering.render_reference(),
        "docs/reference/cli.md": commands_reference.replaced(
            (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
        ),
        "docs/reference/redis.md": keys_reference.replaced(
            (ROOT / "docs/reference/redis.md").read_text(encoding="utf-8")
        ),
        "docs/reference/python.md": python_reference.render(),
    }.items():
        (ROOT / name).write_text(text, encoding="utf-8")
