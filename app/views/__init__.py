"""One file per page: inputs, one question to `app.cache`, one figure."""
