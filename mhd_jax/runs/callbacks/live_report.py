"""A run's `report.html` while the run goes on."""

from __future__ import annotations

from mhd_jax.runs.callbacks.live_page import LivePage


class LiveReport(LivePage):
    """Writes `report.html` while runs with folders go on, and says there how far they are.

    The page reloads itself until the run has finished, and its report takes the page's place. A run
    that is interrupted or diverges leaves the page, which says so. Pages are written at most every
    10 seconds, and take at most a twentieth of the time; one that cannot be written is a warning.
    """

    def write(self, ended: str | None = None) -> None:
        """Writes the page of each run; of one that has diverged, it says so."""
        from mhd_jax.runs import unfinished  # imported late, as few programs write pages

        for place, run in enumerate(self.runs):
            why = ended
            if place in self.diverged:
                why = "The run has diverged: a client's loss or parameters are no longer finite."
            if run.folder is not None:
                news = "" if why else self.news
                unfinished.write(run.folder, run.history, self.step, news=news, ended=why)
