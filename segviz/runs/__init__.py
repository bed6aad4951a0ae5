"""Reading runs: this project's directories and other trainers' dumps."""
