"""The verdict on a file that is not kept."""


class Refused(Exception):
    """This picture cannot be kept: a code for programs, a detail for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
