"""One module for each thing that is measured; each prints Markdown."""
