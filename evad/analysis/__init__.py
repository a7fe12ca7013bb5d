"""Tables and figures from run folders: the paper's Tables 1-3 and Figs 1, 4 and 6-12."""

from evad.analysis.read import curves, describe, evaluations, per_class, read_runs
from evad.analysis.summaries import Summaries
from evad.analysis.tables import summarize
from evad.analysis.wandb_export import read_wandb_export

__all__ = ["Summaries", "curves", "describe", "evaluations", "per_class", "read_runs", "read_wandb_export", "summarize"]
