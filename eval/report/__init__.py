"""The report of a build: report.json, report.html and report.md, computed afterwards from manifests.

`stage` is the stage: it assembles the JSON and compares the recipe's numbers with the build. `collect` and `data` read
manifests, metrics and data cards. `view`, `data` and `plots` decide what a page shows, `wording` writes numbers as
text, and `render` fills the templates.
"""

from eval.report.stage import Choice, Licence, ReportConfig, read_choices, report, revised

__all__ = ["Choice", "Licence", "ReportConfig", "read_choices", "report", "revised"]
