"""The live sliders of the Steering page: a component for the browser, and what it is told."""
