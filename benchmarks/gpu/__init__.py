"""One command that measures everything on a GPU: `python -m benchmarks.gpu --minutes 28 --output FOLDER`."""
