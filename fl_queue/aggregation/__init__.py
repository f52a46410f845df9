"""Updates merged exactly and in any order: sums of integers, clipping, weights of stale updates."""
