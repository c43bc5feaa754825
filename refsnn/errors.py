"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """One line that names the thing, the place and the remedy; the command line prints it and exits with 2.

    Raised for bad input (configuration, data, files). Mistakes in calling code raise `ValueError` or `TypeError`.
    """
