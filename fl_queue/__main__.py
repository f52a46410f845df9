"""``python -m fl_queue``: the same as ``fl-queue``."""

from fl_queue.cli import main

if __name__ == "__main__":
    main()
