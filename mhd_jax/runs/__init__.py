"""Run folders, checkpoints, figures, reports, and callbacks that watch a run."""
