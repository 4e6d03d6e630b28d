"""Chat templates that show tools and their results, in the manner of those of model families."""

from tests.unit.trainers.models.templates import FORGETS
from trainers.models.chat import TEMPLATE

OPENING = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content }}\n\n{% endif %}# Tools\n<tools>{% for tool in tools %}\n"
    "{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}"
    "<|im_end|>\n"
    "{% endif %}"
)
RESULT = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
)
ANSWERING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = (
    f"{OPENING}{{% for m in messages %}}{{% if m.role == 'system' and loop.first %}}"
    f"{{% elif m.role == 'tool' %}}{RESULT}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    f"{ANSWERING}"
)
QWEN3 = (
    "{% set ns = namespace(asked=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    f"{OPENING}{{% for m in messages %}}{{% if m.role == 'system' and loop.first %}}"
    f"{{% elif m.role == 'tool' %}}{RESULT}"
    "{% elif m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% else %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.asked and '</think>' in m.content %}{{ m.content }}"
    "{% elif loop.index0 > ns.asked and loop.last %}<think>\n\n</think>\n\n{{ said }}"
    "{% else %}{{ said }}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    f"{ANSWERING}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% set ns = namespace(told=false) %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>{% else %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{% if tools and m.role == 'user' and not ns.told %}"
    "{% set ns.told = true %}Given the following functions:\n\n{% for tool in tools %}"
    "{{ tool | tojson }}\n\n{% endfor %}{% endif %}{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(turn=0, last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% if m.role in ['user', 'assistant'] %}{% if (m.role == 'user') != (ns.turn % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% set ns.turn = ns.turn + 1 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] "
    "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}{% if not m.tool_call_id or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids of calls have 9 letters') }}{% endif %}[TOOL_RESULTS] "
    "{{ {'content': m.content, 'call_id': m.tool_call_id} | tojson }}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
"""Its tools move to the last question, its roles alternate, and ids of calls have 9 letters."""

NO_TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    f"{ANSWERING}"
)
TOOL_TEMPLATES = {
    "chatml": CHATML, "qwen3": QWEN3, "llama3": LLAMA3, "mistral": MISTRAL,
    "roles": TEMPLATE.replace("<|end|>", "</s>"), "no_tools": NO_TOOLS, "forgets": FORGETS,
}  # fmt: skip
SHOW_TOOLS = ("chatml", "qwen3", "llama3", "mistral")
