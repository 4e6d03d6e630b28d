"""The command `llmgym`: one file for each verb."""
