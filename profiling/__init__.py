"""linescan."""
