"""The attacker's side: triggers, target behaviors, poisoned data, and planting a backdoor."""
