"""What runs in the browser: the live sliders of the Steering page, figures saved as pictures, and what they are told."""
