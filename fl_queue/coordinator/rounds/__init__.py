"""A round's life: who may take part, opened, closed, and the next one."""
