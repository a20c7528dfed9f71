"""A plugin whose import raises what is no Exception, as a panic in Rust does."""


class PanicException(BaseException):
    pass


raise PanicException("called `Option::unwrap()` on a `None` value")
