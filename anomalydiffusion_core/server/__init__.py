"""ComfyUI from outside: its process, a client of its API, workflows, and the results of a run."""
