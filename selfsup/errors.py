"""The one exception for what a person can put right."""


class UserError(Exception):
    """A mistake in what was asked for: a setting, a file, a folder.

    The message is one sentence that names the setting and the way out. The command line prints it without a
    traceback and exits with code 2.
    """
