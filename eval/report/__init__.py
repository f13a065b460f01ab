"""The report of a build: report.json, report.html and report.md, computed afterwards from manifests.

`stage` is the stage and assembles the JSON. `collect` and `data` read manifests, metrics and data cards; `choices` has
a recipe's numbers and the benchmarks' terms. `view`, `data` and `headlines` decide what a page shows,
`plots` and `wording` turn numbers into drawings and words, and `render` fills the templates.
"""

from eval.report.choices import Choice, read_choices, revised
from eval.report.stage import Licence, ReportConfig, report

__all__ = ["Choice", "Licence", "ReportConfig", "read_choices", "report", "revised"]
