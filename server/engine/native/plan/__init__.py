"""Plans of the decoders that the native step runs, from their `config.json`."""


class Refused(Exception):
    """The native step cannot run a model; the message gives the reason."""
