"""The sections of report.html: each takes the run and gives its part of the page, or None when the run has nothing for it."""
