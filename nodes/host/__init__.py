"""The adapter to ComfyUI. No other module of the extension imports its models, samplers or folders."""
