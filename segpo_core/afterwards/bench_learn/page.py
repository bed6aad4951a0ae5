from pathlib import Path
def write(lines, page, plots, credit):
    pass
