"""What is done with a finished run: credit of other methods, asking the policy that was trained."""
