"""Between gradio and the outside: validation of requests, access, the model registry, patches of gradio."""
