"""How does the coordinator get better? Optimisers and trainers; nothing that serves imports this."""
