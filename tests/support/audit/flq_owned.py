"""The module that hostile jobs name. Nobody imports it, and nobody calls this."""


def run(*args: object, **kwargs: object) -> None:
    """What a hostile job wants done."""
