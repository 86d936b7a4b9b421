"""From validated assessments to a registered adapter: stages that can be run again."""
