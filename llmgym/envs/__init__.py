"""The built-in environments: one file per family, and the table that `llmgym` registers."""

BUILT_IN = (
    ("llmgym/Arithmetic-v0", "llmgym.envs.arithmetic:make", ("math", "procedural")),
    ("llmgym/GSM8K-v0", "llmgym.envs.gsm8k:make", ("math",)),
    (
        "llmgym/GuessNumber-v0",
        "llmgym.envs.games:make_guess_number",
        ("games", "turns", "procedural"),
    ),
    (
        "llmgym/Instructions-v0",
        "llmgym.envs.instructions:make",
        ("instructions", "procedural"),
    ),
    ("llmgym/Preference-v0", "llmgym.envs.feedback:make_preference", ("feedback",)),
    ("llmgym/Prompts-v0", "llmgym.envs.prompts:make", ("prompts",)),
    ("llmgym/ReverseTokens-v0", "llmgym.envs.probes:make_reverse_tokens", ("probe", "procedural")),
    ("llmgym/Sentiment-v0", "llmgym.envs.feedback:make_sentiment", ("feedback",)),
)
"""(id, "module:factory", tags) of every environment that comes with the package."""

NUMERIC = (
    ("llmgym/Compression-v0", "llmgym.envs.compression:make", ("compression", "numeric")),
    ("llmgym/Speculative-v0", "llmgym.envs.speculative:make", ("compression", "numeric")),
)
"""The same for environments of numbers, which any Gymnasium library acts in."""
