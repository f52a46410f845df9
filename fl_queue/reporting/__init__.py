"""Numbers and states of runs for people and tools: tables, plots, live view, model card, exporters."""
