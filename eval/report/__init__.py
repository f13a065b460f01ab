"""The report of a build: report.json, report.html and report.md, computed afterwards from manifests.

`stage` is the stage and puts the JSON together, `collect` and `data_cards` read what the artifacts say about
themselves, `choices` has a recipe's numbers, `benchmarks` the terms of what is asked. `view`, `data_view` and
`headlines` decide what a page shows, `plots` and `wording` turn numbers into drawings and words, and `render` fills the
templates.
"""

from eval.report.choices import Choice, revised
from eval.report.stage import Licence, ReportConfig, report

__all__ = ["Choice", "Licence", "ReportConfig", "report", "revised"]
