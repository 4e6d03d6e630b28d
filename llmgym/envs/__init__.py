"""The built-in environments: one file per family, and the table that `llmgym` registers."""

BUILT_IN = (
    ("llmgym/Arithmetic-v0", "llmgym.envs.arithmetic:make", ("math", "procedural")),
    (
        "llmgym/Calculator-v0",
        "llmgym.envs.tool_use:make_calculator",
        ("math", "tools", "turns", "procedural"),
    ),
    ("llmgym/ChainSum-v0", "llmgym.envs.chain_sum:make", ("math", "procedural")),
    (
        "llmgym/ConditionalTarget-v0",
        "llmgym.envs.probe_tasks:make_conditional_target",
        ("probe", "procedural"),
    ),
    (
        "llmgym/ConstantTarget-v0",
        "llmgym.envs.probe_tasks:make_constant_target",
        ("probe", "procedural"),
    ),
    ("llmgym/Countdown-v0", "llmgym.envs.countdown:make", ("math", "procedural")),
    (
        "llmgym/DelayedReward-v0",
        "llmgym.envs.probe_tasks:make_delayed_reward",
        ("probe", "turns", "procedural"),
    ),
    ("llmgym/FrozenLake-v0", "llmgym.envs.frozen_lake:make", ("games", "turns", "procedural")),
    ("llmgym/GSM8K-v0", "llmgym.envs.gsm8k:make", ("math",)),
    (
        "llmgym/GridNav-v0",
        "llmgym.envs.probe_tasks:make_grid_nav",
        ("probe", "turns", "procedural"),
    ),
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
    ("llmgym/JSONFormat-v0", "llmgym.envs.json_format:make", ("format", "procedural")),
    ("llmgym/LetterCount-v0", "llmgym.envs.letter_count:make", ("text", "procedural")),
    ("llmgym/Mastermind-v0", "llmgym.envs.mastermind:make", ("games", "turns", "procedural")),
    ("llmgym/MultiChoice-v0", "llmgym.envs.multi_choice:make", ("text", "procedural")),
    ("llmgym/Preference-v0", "llmgym.envs.feedback:make_preference", ("feedback",)),
    ("llmgym/Prompts-v0", "llmgym.envs.prompts:make", ("prompts",)),
    ("llmgym/ReverseText-v0", "llmgym.envs.reverse_text:make", ("text", "procedural")),
    ("llmgym/ReverseTokens-v0", "llmgym.envs.probes:make_reverse_tokens", ("probe", "procedural")),
    ("llmgym/Sentiment-v0", "llmgym.envs.feedback:make_sentiment", ("feedback",)),
    ("llmgym/SortWords-v0", "llmgym.envs.sort_words:make", ("text", "procedural")),
    ("llmgym/Summarize-v0", "llmgym.envs.summaries:make", ("text", "feedback", "procedural")),
    ("llmgym/TextGridWorld-v0", "llmgym.envs.gridworld:make", ("games", "turns", "procedural")),
    (
        "llmgym/TwentyQuestions-v0",
        "llmgym.envs.twenty_questions:make",
        ("games", "turns", "procedural"),
    ),
    ("llmgym/TwoInputs-v0", "llmgym.envs.probe_tasks:make_two_inputs", ("probe", "procedural")),
    ("llmgym/Wordle-v0", "llmgym.envs.wordle:make", ("games", "turns", "procedural")),
)
"""(id, "module:factory", tags) of every environment that comes with the package."""

NUMERIC = (
    ("llmgym/Compression-v0", "llmgym.envs.compression:make", ("compression", "numeric")),
    ("llmgym/Speculative-v0", "llmgym.envs.speculative:make", ("compression", "numeric")),
    ("llmgym/Token-v0", "llmgym.envs.token:make", ("text", "numeric")),
)
"""The same for environments of numbers, which any Gymnasium library acts in."""
