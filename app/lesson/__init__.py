"""The guided lesson of the page Learn: eight steps, each with a figure, something to try and a question."""
