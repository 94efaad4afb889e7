"""What a run says to people: `report.html`, the summary in the terminal and `fmray show`, all from records alone."""
