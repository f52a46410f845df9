"""The module that hostile jobs name; it must never be imported, nor its function called."""


def run(*args: object, **kwargs: object) -> None:
    """Stand for the code that a hostile job wants to run."""
