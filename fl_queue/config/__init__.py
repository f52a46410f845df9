"""The TOML file of a run: read, checked, shown; and the table of built-in tasks."""
