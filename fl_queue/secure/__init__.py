"""Building blocks of secure sums: masks that cancel, shares of their secrets, and what all of it is bound to."""
