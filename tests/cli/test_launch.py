"""What a binary does when a signal ends it at once."""

import textwrap

from tests.builders import python


def test_last_words_are_said_where_a_signal_ends_the_process(tmp_path):
    program = textwrap.dedent(
        """
        import pathlib, signal
        from mhd_jax.cli import launch

        def fails():
            raise OSError("no room")

        def main():
            with launch.last_words(lambda: pathlib.Path("too_late").touch()):
                pass
            with launch.last_words(lambda: pathlib.Path("said").touch()), launch.last_words(fails):
                signal.raise_signal(signal.SIGINT)
            pathlib.Path("went_on").touch()

        launch.run(main, computes=False)
        """
    )
    (tmp_path / "binary.py").write_text(program)
    done = python("binary.py", cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "interrupted; the same command goes on" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["binary.py", "said"]
