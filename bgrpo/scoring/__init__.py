"""From completions to outcomes, rewards and advantages."""
