"""The results on `demo` as they were once found right, and the command that writes them down anew."""
