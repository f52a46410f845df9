"""The processes: thin RQ workers around ``fl_queue``, and the supervisor that keeps them running."""

#: Exit status of a worker whose client another worker serves.
EXIT_REFUSED = 2
