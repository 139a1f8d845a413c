"""How many of what, in words."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 step`, `2 steps`, `1,243 tokens`.

    Args:
        number: how many.
        noun: of one.
        plural: of several, where it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
