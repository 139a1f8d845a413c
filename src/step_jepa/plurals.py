"""How many of what, in words."""


def counted(number: float, noun: str, plural: str = "") -> str:
    """`1 step`, `2 steps`, `1,243 tokens`, `1.5 epochs`.

    Args:
        number: how many.
        noun: of one.
        plural: of several, where it is not the noun with an s.
    """
    shown = f"{int(number):,}" if number == int(number) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or f'{noun}s'}"
