"""The app: `segpo app runs/` shows runs in a browser while they train. Start at main.py; one file a tab."""
