"""Numbers and states of runs for users and tools: tables, plots, live view, model card, exporters."""
