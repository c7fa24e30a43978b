"""Conversations as text: chat templates, and which of the text the model is to write.

A template is Jinja, as Hugging Face's tokenizers carry it: it gets `messages`,
`add_generation_prompt`, `bos_token` and `eos_token`, and is rendered in a sandbox.
"""

import datetime
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import numpy as np

from sparse_jax.data.tokenizer import Ids, Tokenizer
from sparse_jax.types import InputError

Message = Mapping[str, Any]
"""`role` (system, user or assistant) and `content`."""

LLAMA2 = """\
{%- if messages[0].role == 'system' -%}
  {%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant must take turns, the user first') -}}
  {%- endif -%}
  {%- if message.role == 'user' -%}
    {{- bos_token + '[INST] ' + (system if loop.first else '') -}}
    {{- message.content.strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + message.content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""
"""Llama 2's own, for tokenizers without a template."""

PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- message.content -}}
  {%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
"""
"""What is said and nothing else, for records whose prompts are whole already."""

# Around what a template marks as written by the model; no text holds them by chance.
_OPEN, _CLOSE = f"\ue000{uuid.uuid4().hex}\ue000", f"\ue001{uuid.uuid4().hex}\ue001"


class TemplateError(Exception):
    """A conversation that a template cannot render."""


class ChatTemplate:
    """Renders conversations.

    Attributes:
      source: the Jinja text.
      bos: text of the token that begins a sequence; "" where there is none.
      eos: of the token that ends one.

    Example:
      >>> template = ChatTemplate(LLAMA2, bos="<s>", eos="</s>")
      >>> turns = [{"role": "user", "content": "1 + 1?"},
      ...          {"role": "assistant", "content": "2"}]
      >>> template.render(turns)
      '<s>[INST] 1 + 1? [/INST] 2 </s>'
      >>> text, spans = template.with_responses(turns)
      >>> [text[start:end] for start, end in spans]
      [' 2 </s>']
    """

    def __init__(
        self, source: str, *, bos: str = "", eos: str = "", where: str = "template"
    ):
        """Compiles a template.

        Args:
          source: the Jinja text.
          bos: see the class.
          eos: see the class.
          where: of the template, for messages.

        Raises:
          InputError: it is no Jinja template.
        """
        self.source, self.bos, self.eos, self._where = source, bos, eos, where
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(
                f"{where}: is not a Jinja template ({error}): repair it, or set "
                "template to 'llama2' or 'plain'"
            ) from error

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Args:
          messages: its turns.
          add_generation_prompt: end where the model is to begin.

        Raises:
          TemplateError: the template refuses it, or breaks.
        """
        text = self._render(messages, add_generation_prompt)
        return text.replace(_OPEN, "").replace(_CLOSE, "")

    def with_responses(
        self, messages: Sequence[Message]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where what the model writes begins and ends.

        That is what the template marks with `{% generation %}`; of a template without
        such marks, what a turn of the assistant adds to the text of the turns before,
        the end-of-sequence token included.

        Raises:
          TemplateError: see `render`; or a turn changes the text of those before.
        """
        marked = self._render(messages, False)
        if _OPEN in marked:
            return _unmarked(marked)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(messages[:number], True)
                after = self._render(messages[: number + 1], False)
                if not (after.startswith(before) and marked.startswith(after)):
                    raise TemplateError(
                        f"turn {number + 1} changes the text of the turns before it"
                    )
                spans.append((len(before), len(after)))
        return marked, spans

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos,
                eos_token=self.eos,
            )
        # A template runs code of its own: it may fail in any way.
        except Exception as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise TemplateError(f"{self._where}: {reason}") from error


def chat_template(tokenizer: Tokenizer, template: str = "chat") -> ChatTemplate:
    """The template that a name stands for.

    Args:
      tokenizer: of the model.
      template: "chat" for the tokenizer's own, Llama 2's where it has none; "llama2";
        "plain" for the bare text of the turns; else the path of a Jinja file.

    Raises:
      InputError: there is no such file, or it is no template.
    """
    tokens = {
        "bos": "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id),
        "eos": "" if tokenizer.eos_id is None else tokenizer.piece(tokenizer.eos_id),
    }
    known = {"llama2": LLAMA2, "plain": PLAIN}
    if template == "chat":
        own = _own_template(tokenizer.files)
        where = "the tokenizer's chat template" if own else "Llama 2's template"
        return ChatTemplate(own or LLAMA2, where=where, **tokens)
    if template in known:
        return ChatTemplate(known[template], where=f"template {template}", **tokens)
    try:
        source = Path(template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"template {template!r} is neither 'chat', 'llama2', 'plain' nor a Jinja "
            f"file that can be read ({error}): name one of these"
        ) from error
    return ChatTemplate(source, where=template, **tokens)


def encode_rendered(tokenizer: Tokenizer, text: str) -> tuple[Ids, Ids]:
    """The ids of what a chat template gives, and the bytes that each stands for.

    Where the text spells the bos or the eos token, it stands for that token, also with
    a SentencePiece model, which has no spelling of its own for them.

    Returns:
      ids int32 [n] and nbytes int32 [n], see `Tokenizer.encode_with_bytes`.
    """
    named = {
        t: tokenizer.piece(t)
        for t in (tokenizer.bos_id, tokenizer.eos_id)
        if t is not None
    }
    known = {piece: token for token, piece in named.items() if piece}
    found = [(np.zeros(0, np.int32), np.zeros(0, np.int32))]
    pattern = "|".join(map(re.escape, known))
    for part in re.split(f"({pattern})", text) if known else [text]:
        if part in known:
            pair = np.array([known[part]]), np.array([len(part.encode())])
            found.append((pair[0].astype(np.int32), pair[1].astype(np.int32)))
        elif part:
            found.append(tokenizer.encode_with_bytes(part))
    ids, nbytes = zip(*found, strict=True)
    return np.concatenate(ids), np.concatenate(nbytes)


def _own_template(files: Mapping[str, bytes]) -> str | None:
    """The template beside a tokenizer: a file of its own, or a field of its config."""
    file = "chat_template.jinja"
    try:
        if file in files:
            return files[file].decode()
        file = "tokenizer_config.json"
        found = json.loads(files.get(file, b"{}")).get("chat_template")
        if isinstance(found, list):  # several by name
            found = {entry["name"]: entry["template"] for entry in found}["default"]
        if not isinstance(found, str | None):
            raise TypeError(f"chat_template is {type(found).__name__}, not a string")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} beside the tokenizer gives no default chat template ({error!r}): "
            "repair it, or set template to 'llama2', 'plain' or a Jinja file"
        ) from error
    return found


def _unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Takes the marks out, and says where they were."""
    plain, spans, size = [], [], 0
    for number, part in enumerate(text.split(_OPEN)):
        inside, mark, outside = part.partition(_CLOSE)
        if bool(number) != bool(mark):
            raise TemplateError("{% generation %} blocks stand inside each other")
        if number:
            spans.append((size, size + len(inside)))
        plain += [inside, outside]
        size += len(inside) + len(outside)
    return "".join(plain), spans


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the model writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller):
        return _OPEN + caller() + _CLOSE


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What templates may use: as Hugging Face's tokenizers offer it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    def to_json(value, indent=None, ensure_ascii=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def now(format: str) -> str:
        return datetime.datetime.now().strftime(format)

    environment.filters["tojson"] = to_json
    shared: Any = environment.globals
    shared.update(raise_exception=refuse, strftime_now=now)
    return environment
