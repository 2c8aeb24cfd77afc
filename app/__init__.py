"""The dashboard: thin pages over `core`. `main.py` declares the pages, `launch.py` starts the server."""
