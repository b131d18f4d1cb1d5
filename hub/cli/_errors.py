"""What a verb raises when it cannot do what was asked."""


class Failed(Exception):
    """The message is one sentence for the person at the terminal."""
