"""What a model computes for a text (routing, attention, logit lens, KV cache), and what changes if experts are ablated."""
