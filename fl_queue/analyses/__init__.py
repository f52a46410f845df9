"""Analyses of tables by exact sums: what each site adds up, and what is made of the sum. numpy only."""
