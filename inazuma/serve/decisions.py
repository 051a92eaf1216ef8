"""Typed questions with a probability for every possible answer, without writing a token: `/v1/decisions`, as OpenAI's
client calls it, and `/v1/systemone`, TypeSafe's form of the same.

The model reads the input and a question, and then, in place of what it would write, each possible answer. The
log-probability of an answer is that of all its tokens and of the token that ends a reply, given what stands before:
how likely the model replies this and nothing else. The end is what makes answers of different lengths comparable, and
keeps "New" from swallowing the probability of "New York"; nothing is divided by a number of tokens. A softmax over the
answers, divided by the `temperature` in the model folder's `decision.json` (1 without the file), gives their
probabilities: a temperature fitted on labelled questions makes them calibrated (Guo et al., arXiv 1706.04599).

All prompts of a question begin alike, and those of a request share the input: the engine's cache reads that once.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, StrictBool, StrictStr, model_validator
from starlette.responses import Response

from inazuma.serve.errors import bad
from inazuma.serve.request import Done
from inazuma.serve.request import Request as EngineRequest
from inazuma.serve.schemas import Body, JsonObject
from inazuma.serve.served import Served
from inazuma.serve.service import Call, respond

router = APIRouter()

MAX_ANSWERS = 4096
"""Possible answers to all questions of a request together."""


class TextPart(Body):
    type: Literal["input_text", "output_text"]
    text: str


class JsonPart(Body):
    type: Literal["input_json"]
    data: JsonObject | list[JsonObject]


Content = str | list[Annotated[TextPart | JsonPart, Field(discriminator="type")]]


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Content


class Choice(Body):
    value: StrictStr | StrictBool
    description: str | None = None


class Level(Body):
    label: Annotated[str, Field(min_length=1)]
    description: str | None = None


class PredicateQuestion(Body):
    type: Literal["predicate"]
    instructions: Content
    name: str | None = None


class ChoiceQuestion(Body):
    type: Literal["choice"]
    instructions: Content
    choices: Annotated[list[Choice], Field(min_length=2, max_length=255)]
    name: str | None = None

    @model_validator(mode="after")
    def _differ(self) -> ChoiceQuestion:
        if len({(type(choice.value), choice.value) for choice in self.choices}) < len(self.choices):
            raise ValueError("choices: each must be unique")
        return self


class ScoreQuestion(Body):
    type: Literal["score"]
    instructions: Content
    levels: Annotated[list[Level], Field(min_length=2, max_length=255)]
    name: str | None = None


class DecisionBody(Body):
    """`POST /v1/decisions`; the last three fields have no effect."""

    model: str
    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    questions: Annotated[
        list[Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]],
        Field(min_length=1, max_length=400),
    ]
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    safety_identifier: str | None = None


Described = str | JsonObject | list[Any]


class Noul(Body):
    type: Literal["noul"]
    instructions: Described | None = None
    criteria: dict[Literal["true", "false"], Described | None] | None = None


class NamedChoice(Body):
    type: Literal["choice"]
    instructions: Described | None = None
    criteria: Annotated[dict[str, Described | None], Field(min_length=1, max_length=255)]


class Score(Body):
    type: Literal["score"]
    instructions: Described | None = None
    criteria: Annotated[list[Described], Field(min_length=1, max_length=255)]


class SystemOneBody(Body):
    """`POST /v1/systemone`"""

    model: str | None = None
    state: Described
    questions: Annotated[
        dict[str, Annotated[Noul | NamedChoice | Score, Field(discriminator="type")]],
        Field(min_length=1, max_length=400),
    ]


@dataclass(frozen=True)
class Question:
    """What is asked, and the texts that may answer it."""

    instructions: str
    answers: tuple[str, ...]
    descriptions: tuple[str | None, ...]

    def text(self) -> str:
        """As the model reads it, after the input."""
        lines = [self.instructions] if self.instructions else []
        lines += [
            f"- {answer}: {description}" if description else f"- {answer}"
            for answer, description in zip(self.answers, self.descriptions, strict=True)
        ]
        return "\n".join([*lines, "Answer with one of these and nothing else."])


@router.post("/v1/decisions")
async def decisions(body: DecisionBody, request: Request) -> Response:
    """Probabilities of the answers to typed questions about an input."""
    call = Call(request, body.model)
    questions = [_question(question) for question in body.questions]
    messages = _messages(body.input)
    return await respond(call, _decide(call, messages, questions, lambda *read: _decision(body, call, *read)))


@router.post("/v1/systemone")
async def systemone(body: SystemOneBody, request: Request) -> Response:
    """The same, in TypeSafe's form."""
    call = Call(request, body.model)
    questions = [_system_one_question(question) for question in body.questions.values()]
    messages = [{"role": "user", "content": _plain(body.state)}]
    return await respond(call, _decide(call, messages, questions, lambda *read: _system_one(body, call, *read)))


async def _decide(call: Call, messages: list[dict[str, Any]], questions: list[Question], reply) -> dict[str, Any]:
    answers = sum(len(question.answers) for question in questions)
    if answers > MAX_ANSWERS:
        raise bad("questions", f"{answers} possible answers in all, of at most {MAX_ANSWERS}")
    temperature = call.served.decision_temperature
    reads: list[Done] = []
    probabilities = []
    for question in questions:
        prefix, answered = await asyncio.to_thread(_tokens, call.served, messages, question)
        # The first answer's pass leaves the question in the cache, where the others find it.
        ends = [await _read(call, prefix, answered[0])]
        ends += await asyncio.gather(*(_read(call, prefix, tokens) for tokens in answered[1:]))
        scores = [math.fsum(token.logprob for token in done.prompt) / temperature for done in ends]
        probabilities.append(softmax(scores))
        reads += ends
    call.record.prompt_tokens = sum(done.prompt_tokens for done in reads)
    return reply(probabilities, reads)


def _tokens(served: Served, messages: list[dict[str, Any]], question: Question) -> tuple[list[int], list[list[int]]]:
    """The prompt of a question, and what each answer adds to it."""
    prompt = served.decision_prompt(messages, question.text())
    return prompt, [served.decision_answer(answer) for answer in question.answers]


async def _read(call: Call, question: list[int], answer: list[int]) -> Done:
    request = EngineRequest(question + answer, 0, prompt_logprobs=0, prompt_logprobs_start=len(question))
    async with call.slot, call.run(request) as run:
        return await run.read()


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _question(question: PredicateQuestion | ChoiceQuestion | ScoreQuestion) -> Question:
    instructions = _plain_content(question.instructions)
    if isinstance(question, PredicateQuestion):
        return Question(f"Is this true? {instructions}", ("yes", "no"), (None, None))
    if isinstance(question, ChoiceQuestion):
        # A string and a boolean of the same text are different choices; JSON tells them apart where it must.
        texts = [
            choice.value if isinstance(choice.value, str) else json.dumps(choice.value) for choice in question.choices
        ]
        if len(set(texts)) < len(texts):
            texts = [json.dumps(choice.value, ensure_ascii=False) for choice in question.choices]
        return Question(instructions, tuple(texts), tuple(choice.description for choice in question.choices))
    labels = tuple(level.label for level in question.levels)
    return Question(instructions, labels, tuple(level.description for level in question.levels))


def _system_one_question(question: Noul | NamedChoice | Score) -> Question:
    instructions = "" if question.instructions is None else _plain(question.instructions)
    if isinstance(question, Noul):
        criteria = question.criteria or {}
        described = tuple(None if criteria.get(side) is None else _plain(criteria[side]) for side in ("true", "false"))
        return Question(instructions, ("yes", "no"), described)
    if isinstance(question, NamedChoice):
        described = tuple(None if text is None else _plain(text) for text in question.criteria.values())
        return Question(instructions, tuple(question.criteria), described)
    levels = tuple(_plain(level) for level in question.criteria)
    return Question(instructions, levels, (None,) * len(levels))


def _decision(body: DecisionBody, call: Call, probabilities: list[list[float]], reads: list[Done]) -> dict[str, Any]:
    answers = []
    for question, p in zip(body.questions, probabilities, strict=True):
        answer: dict[str, Any] = {"type": question.type, "name": question.name}
        best = max(range(len(p)), key=p.__getitem__)
        if isinstance(question, PredicateQuestion):
            answers.append(answer | {"probability": p[0]})
        elif isinstance(question, ChoiceQuestion):
            each = [{"value": c.value, "probability": x} for c, x in zip(question.choices, p, strict=True)]
            answers.append(
                answer | {"choice": question.choices[best].value, "confidence": p[best], "probabilities": each}
            )
        else:
            each = [
                {"value": value, "label": level.label, "probability": x}
                for value, (level, x) in enumerate(zip(question.levels, p, strict=True))
            ]
            answers.append(answer | {"score": _mean(p), "confidence": p[best], "probabilities": each})
    cached = sum(done.cached_tokens for done in reads)
    return {
        "model": call.served.name,
        "answers": answers,
        "usage": {
            "input_tokens": call.record.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": call.record.prompt_tokens,
        },
    }


def _system_one(body: SystemOneBody, call: Call, probabilities: list[list[float]], reads: list[Done]) -> dict[str, Any]:
    answers = {}
    for (name, question), p in zip(body.questions.items(), probabilities, strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        # TypeSafe's: 1 where one answer holds all, 0 where all are alike.
        confidence = 1.0 if len(p) == 1 else (len(p) * p[best] - 1) / (len(p) - 1)
        if isinstance(question, Noul):
            answers[name] = {"type": "noul", "noul": p[0]}
        elif isinstance(question, NamedChoice):
            labels = list(question.criteria)
            answers[name] = {
                "type": "choice",
                "choice": labels[best],
                "probabilities": dict(zip(labels, p, strict=True)),
                "confidence": confidence,
            }
        else:
            answers[name] = {
                "type": "score",
                "score": _mean(p),
                "legend": {str(level): _plain(text) for level, text in enumerate(question.criteria)},
                "probabilities": {str(level): x for level, x in enumerate(p)},
                "confidence": confidence,
            }
    usage = {"input_tokens": call.record.prompt_tokens, "output_tokens": 0}
    return {"id": call.id("dec"), "model": call.served.name, "answers": answers, "usage": usage}


def _mean(p: list[float]) -> float:
    """The expected level, counted from 0."""
    return math.fsum(level * x for level, x in enumerate(p))


def _messages(given: str | list[InputMessage]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [{"role": message.role, "content": _plain_content(message.content)} for message in given]


def _plain_content(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else _plain(part.data) for part in content)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
