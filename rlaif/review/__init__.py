"""People in the loop: a local page to read what a run compared, vote on it blind, and see how far the judge agrees.

Votes go to the run's ledger (rlaif.engine.votes). The next `rlaif generate` on the run takes them before any judge, and
`export_votes` writes them as labelled pairs that judges are measured on.
"""

from rlaif.review.export import export_votes
from rlaif.review.serve import Review, open_review

__all__ = ["Review", "export_votes", "open_review"]
