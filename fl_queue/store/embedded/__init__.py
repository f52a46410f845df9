"""The private Redis servers of a machine that was given none."""
