"""The Tower of Hanoi: where an output limit forbids the answer, and where it does not.

"The Illusion of Thinking" (Shojaee et al., arXiv 2506.06941) has models write all 2^N - 1 moves within about 64,000
tokens and sees accuracy collapse from about eight discs on. The popular rebuttal says that the limit did it. Both are
half right: at 10 tokens a move the answer outgrows the limit at 13 discs (at 5 tokens a move, at 14), so that beyond it
the score says nothing about a model. At eight to ten discs it takes 4 to 16 % of the limit, so that there the limit
explains nothing. A follow-up (arXiv 2507.01231) let models answer a few moves at a time and saw them stumble around
eight discs.

The last column is a third reading: 99 % per move, at every size, is a collapse by itself.
"""

from __future__ import annotations

from lesson import Lesson, Statement, show

from inazuma.evaluate.tasks.hanoi import solve

LIMIT = 64_000
TOKENS_PER_MOVE = (5, 10)
DISCS = range(5, 16)


def lesson() -> Lesson:
    moves = {n: sum(1 for _ in solve(n, "A", "C")) for n in DISCS}
    binds = {t: min(n for n in DISCS if t * moves[n] > LIMIT) for t in TOKENS_PER_MOVE}
    few, many = TOKENS_PER_MOVE
    beyond = [n for n in DISCS if n >= binds[few]]
    return Lesson(
        title=f"The Tower of Hanoi under a limit of {LIMIT:,} tokens",
        columns=("discs", "moves", f"tokens at {few}", f"tokens at {many}", "of the limit", "all right at 99 % a move"),
        rows=[(n, m, few * m, many * m, f"{many * m / LIMIT:.0%}", f"{0.99**m:.0%}") for n, m in moves.items()],
        statements=(
            Statement(
                id="large-sizes",
                text="Models solve 0 % of the towers of 14 and 15 discs: a limit of their reasoning.",
                stated="0",
                found=100 * (len(beyond) == 0),  # what a solver that never errs scores there
                rules=(
                    ("V03", f"the shortest answer to {beyond} discs is over {LIMIT:,} tokens even at {few} a move"),
                ),
            ),
            Statement(
                id="limit-binds",
                text="The limit forbids the answer from 13 discs on.",
                stated="13",
                found=binds[many],
            ),
            Statement(
                id="rebuttal",
                text="The limit explains the collapse around eight discs: it forbids the answer from 8 discs on.",
                stated="8",
                found=binds[many],
            ),
            Statement(
                id="not-purely",
                text="Failures at eight discs are not purely the limit's: the answer takes at most 4 % of it.",
                stated="4",
                found=100 * many * moves[8] / LIMIT,
                direction="at most",
                source=("https://arxiv.org/abs/2507.01231", "were not purely result of output constraints"),
            ),
            Statement(
                id="program",
                text="Models that print a program for 15 discs show that their reasoning is intact.",
                missing="another task (a program instead of the moves), and its samples are not published",
            ),
        ),
        notes=(
            "5 to 10 tokens a move is an assumption about the paper's answer format; thinking shares the limit",
            "whether answers were cut off (V01) cannot be told: samples with stop reasons are not published",
            "what the paper and the comment say is quoted second-hand; the follow-up's abstract was read",
        ),
    )


if __name__ == "__main__":
    show(lesson())
