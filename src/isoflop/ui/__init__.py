"""The page to play with: the planner behind a few controls, served to this machine alone."""
