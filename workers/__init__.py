"""The processes: thin RQ workers around ``fl_queue``, and the supervisor that keeps them running."""
