"""Compares what a client saw of a request with the undisturbed run of the same request.

Plain values only, so that the checker is tested without a server. A history is what one client
received, message by message; `check` returns the first difference as one line, or None.
"""

import dataclasses
import struct


def bits(value):
    """The bits of a 32-bit float: equal bits, equal logprobs; no rounding, no NaN that differs."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


@dataclasses.dataclass(frozen=True)
class Token:
    """A token's logprob and its ranked alternatives, floats as bits."""
    id: int
    logprob: int
    top: tuple = ()  # of (id, logprob)


@dataclasses.dataclass
class Event:
    """One message of the stream, or the status that ended it."""
    kind: str  # started, prompt_logprobs, delta, finished, summary, status
    seconds: float = 0.0  # time.monotonic() at its arrival
    index: int = 0  # the sample (delta, finished); the first token's place (prompt_logprobs)
    text: str = ""
    ids: tuple = ()  # delta; of `started`: the prompt
    tokens: tuple = ()  # of Token: delta's logprobs, prompt_logprobs
    value: tuple = ()  # started: (seed,); finished: (reason, stop id, stop string, tokens);
    #                    summary: (prompt tokens, completion tokens); status: (code, details)


@dataclasses.dataclass
class History:
    name: str  # says what the request is, in a failure's line
    wants_logprobs: bool
    samples: int
    cancelled: bool = False  # the client left before the end
    events: list = dataclasses.field(default_factory=list)

    def of(self, kind):
        return [event for event in self.events if event.kind == kind]

    def status(self):
        """The code that ended the stream, or None."""
        last = self.of("status")
        return last[-1].value[0] if last else None

    def generated(self):
        return sum(len(event.ids) for event in self.of("delta"))


class Difference(Exception):
    pass


class _Sample:
    def __init__(self):
        self.ids, self.tokens, self.text, self.finished = [], [], "", None
        self.at = []  # of each token: the message that brought it


def _place(history, number):
    event = history.events[number]
    begin = history.events[0].seconds
    return f"message {number} at {event.seconds - begin:.3f} s"


def _read(history):
    """Takes a stream apart and checks its shape."""
    samples = [_Sample() for _ in range(history.samples)]
    prompt, stage = [], "start"
    order = {"start": ("started", "status"), "started": ("prompt_logprobs", "delta", "finished",
                                                         "status"),
             "samples": ("delta", "finished", "summary", "status"), "summary": ("status",),
             "status": ()}
    for number, event in enumerate(history.events):
        where = _place(history, number)
        if event.kind not in order[stage]:
            raise Difference(f"{event.kind} after {stage}, {where}")
        if event.kind == "started":
            stage = "started"
        elif event.kind == "prompt_logprobs":
            if event.index != len(prompt) + 1:
                raise Difference(f"prompt logprobs from token {event.index} after "
                                 f"{len(prompt)} of them, {where}")
            prompt.extend(event.tokens)
        elif event.kind in ("delta", "finished"):
            stage = "samples"
            if not 0 <= event.index < len(samples):
                raise Difference(f"{event.kind} of sample {event.index} of {len(samples)}, {where}")
            sample = samples[event.index]
            if sample.finished is not None:
                raise Difference(f"{event.kind} of sample {event.index} after its end, {where}")
            if event.kind == "finished":
                sample.finished = event.value
                continue
            if history.wants_logprobs and len(event.tokens) != len(event.ids):
                raise Difference(f"{len(event.ids)} tokens with {len(event.tokens)} logprobs, "
                                 f"{where}")
            sample.ids.extend(event.ids)
            sample.tokens.extend(event.tokens)
            sample.at.extend([number] * len(event.ids))
            sample.text += event.text
        else:
            stage = event.kind
    if stage != "status":
        raise Difference(f"the stream has no end: no status after {stage}")
    code, details = history.of("status")[0].value
    unfinished = [i for i, sample in enumerate(samples) if sample.finished is None]
    if code == "OK":
        if not history.of("summary"):
            raise Difference("status OK without a summary")
        if unfinished:
            raise Difference(f"status OK, but sample {unfinished[0]} is not finished")
    elif not (history.cancelled and code == "CANCELLED"):
        got = ", ".join(str(len(sample.ids)) for sample in samples)
        raise Difference(f"ended {code} after {got} tokens: {details}")
    return samples, prompt


def _name_difference(found, expected, i):
    """What happened at place i: a token lost, one that came twice, or another one."""
    rest = min(8, len(expected) - i - 1)
    if rest > 0 and found[i:i + rest] == expected[i + 1:i + 1 + rest]:
        return f"token {expected[i]} is lost"
    for back in range(1, i + 1):
        again = found[i:i + min(back, 8)]
        if again and again == expected[i - back:i - back + len(again)]:
            return f"token {found[i]} comes again, {back} after its place"
    return f"found {found[i]}, expected {expected[i]}"


def _check_tokens(history, index, found, expected, complete):
    n = min(len(found.ids), len(expected.ids))
    for i in range(n):
        where = f"sample {index}, token {i} of {len(expected.ids)}, {_place(history, found.at[i])}"
        if found.ids[i] != expected.ids[i]:
            raise Difference(f"{where}: {_name_difference(found.ids, expected.ids, i)}")
        if not history.wants_logprobs:
            continue
        ours, theirs = found.tokens[i], expected.tokens[i]
        if ours.id != theirs.id or ours.logprob != theirs.logprob:
            raise Difference(f"{where}: logprob bits {ours.logprob:08x} of token {ours.id}, "
                             f"expected {theirs.logprob:08x} of {theirs.id}")
        if ours.top != theirs.top:
            raise Difference(f"{where}: likeliest {ours.top}, expected {theirs.top}")
    if len(found.ids) > n:
        raise Difference(f"sample {index}: token {found.ids[n]} after the {n} that belong there, "
                         f"{_place(history, found.at[n])}")
    if complete and len(found.ids) < len(expected.ids):
        raise Difference(f"sample {index}: {len(found.ids)} tokens, expected "
                         f"{len(expected.ids)}: the last are lost")
    if not expected.text.startswith(found.text) or (complete and found.text != expected.text):
        i = next((i for i, (a, b) in enumerate(zip(found.text, expected.text)) if a != b),
                 min(len(found.text), len(expected.text)))
        raise Difference(f"sample {index}: text differs at character {i}: "
                         f"{found.text[i:i + 20]!r}, expected {expected.text[i:i + 20]!r}")


def _check(history, reference):
    found, found_prompt = _read(history)
    try:
        expected, expected_prompt = _read(reference)
    except Difference as difference:
        raise Difference(f"the undisturbed run is no measure: {difference}") from None
    started = history.of("started")
    if started:
        ours, theirs = started[0], reference.of("started")[0]
        if ours.ids != theirs.ids:
            raise Difference("the prompt's tokens differ")
        if ours.value != theirs.value:
            raise Difference(f"seed {ours.value[0]}, expected {theirs.value[0]}")
    for i, (ours, theirs) in enumerate(zip(found_prompt, expected_prompt)):
        if ours != theirs:
            raise Difference(f"logprobs of prompt token {i + 1}: {ours}, expected {theirs}")
    if len(found_prompt) > len(expected_prompt):
        raise Difference(f"{len(found_prompt)} prompt logprobs, expected {len(expected_prompt)}")
    if len(found_prompt) < len(expected_prompt) and any(sample.ids for sample in found):
        raise Difference(f"{len(found_prompt)} prompt logprobs before the answer, expected "
                         f"{len(expected_prompt)}")
    for i, (ours, theirs) in enumerate(zip(found, expected)):
        _check_tokens(history, i, ours, theirs, ours.finished is not None)
        if ours.finished is not None and ours.finished != theirs.finished:
            raise Difference(f"sample {i}: finished {ours.finished}, expected {theirs.finished}")
    for ours, theirs in zip(history.of("summary"), reference.of("summary")):
        if ours.value != theirs.value:
            raise Difference(f"usage (prompt, completion) {ours.value}, expected {theirs.value}")


def check(history, reference):
    """The first difference in one line, or None where the client saw what it should."""
    try:
        _check(history, reference)
    except Difference as difference:
        return f"{history.name}: {difference}"
    return None
