"""What is measured, and the report, page, card and pictures."""
