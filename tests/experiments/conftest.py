"""How binaries are called, beside `call` and processes of their own."""

import pytest


@pytest.fixture
def refused(call):
    """Gives the one line by which a binary refuses its arguments."""

    def run(binary, *arguments):
        status, out, err = call(binary, *arguments)
        assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    return run


@pytest.fixture
def output(call):
    """Gives what a binary prints that ends well."""

    def run(binary, *arguments):
        status, out, err = call(binary, *arguments)
        assert status == 0, err
        return out

    return run
