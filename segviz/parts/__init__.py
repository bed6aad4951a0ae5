"""What several views share: the heading of a rollout, its tokens, its credit read by segments."""
