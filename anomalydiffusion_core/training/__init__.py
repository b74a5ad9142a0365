"""Training on a frozen base model: one loop, and what is learned in it (anomalies, masks, a LoRA of good parts)."""
