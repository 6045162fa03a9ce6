#!/usr/bin/env python3
"""The checker finds what it is there to find, and calls nothing else a difference."""

import copy
import sys
import unittest

sys.dont_write_bytecode = True

from checker import Event, History, Token, bits, check  # noqa: E402


def token(i):
    return Token(i, bits(-0.5 - i), ((i, bits(-0.5 - i)), (i + 1, bits(-3.0))))


def undisturbed(samples=2, tokens=12, prompt_logprobs=True):
    """Two samples, one token a message, in turns."""
    history = History("r1 greedy", True, samples)
    history.events.append(Event("started", ids=(1, 2, 3), value=(7,)))
    if prompt_logprobs:
        history.events.append(Event("prompt_logprobs", index=1, tokens=(token(2),)))
        history.events.append(Event("prompt_logprobs", index=2, tokens=(token(3),)))
    for i in range(tokens):
        for s in range(samples):
            # Neighbours differ, and some tokens occur again.
            chosen = 10 + s + i % 5
            history.events.append(Event("delta", index=s, text=f"w{i} ", ids=(chosen,),
                                        tokens=(token(chosen),)))
    for s in range(samples):
        history.events.append(Event("finished", index=s, value=("LENGTH", 0, "", tokens)))
    history.events.append(Event("summary", value=(3, samples * tokens)))
    history.events.append(Event("status", value=("OK", "")))
    for i, event in enumerate(history.events):
        event.seconds = i * 0.01
    return history


class Checker(unittest.TestCase):
    def setUp(self):
        self.reference = undisturbed()
        self.history = copy.deepcopy(self.reference)
        self.deltas = [i for i, e in enumerate(self.history.events) if e.kind == "delta"]

    def assert_finds(self, *fragments):
        found = check(self.history, self.reference)
        self.assertIsNotNone(found, "nothing was found")
        self.assertNotIn("\n", found)
        for fragment in ("r1 greedy", *fragments):
            self.assertIn(fragment, found)

    def event(self, kind):
        return next(e for e in self.history.events if e.kind == kind)

    def test_equal_histories_have_no_difference(self):
        self.assertIsNone(check(self.history, self.reference))

    def test_how_tokens_are_cut_into_messages_is_no_difference(self):
        first = next(e for e in self.history.events if e.kind == "delta" and e.index == 0)
        second = [e for e in self.history.events if e.kind == "delta" and e.index == 0][1]
        first.ids, first.tokens = first.ids + second.ids, first.tokens + second.tokens
        first.text += second.text
        self.history.events.remove(second)
        self.assertIsNone(check(self.history, self.reference))

    def test_times_are_no_difference(self):
        for event in self.history.events:
            event.seconds += 5
        self.assertIsNone(check(self.history, self.reference))

    def test_finds_a_lost_token(self):
        for place in (0, 9, len(self.deltas) - 1):
            with self.subTest(place=place):
                self.setUp()
                del self.history.events[self.deltas[place]]
                self.assert_finds(f"sample {place % 2}", "lost")

    def test_finds_a_repeated_token(self):
        self.history.events.insert(self.deltas[9], copy.deepcopy(
            self.history.events[self.deltas[7]]))
        self.assert_finds("sample 1, token 4 of 12", "comes again, 1 after its place")

    def test_finds_a_repeated_run_of_tokens(self):
        again = copy.deepcopy([self.history.events[i] for i in self.deltas[2:8]])
        self.history.events[self.deltas[8]:self.deltas[8]] = again
        self.assert_finds("sample 0, token 4 of 12", "comes again, 3 after its place")

    def test_finds_a_token_after_the_last(self):
        last = self.deltas[-1]
        self.history.events.insert(last + 1, copy.deepcopy(self.history.events[last]))
        self.assert_finds("sample 1", "after the 12 that belong there")

    def test_finds_a_changed_token(self):
        event = self.history.events[self.deltas[6]]
        event.ids, event.tokens = (99,), (token(99),)
        self.assert_finds("sample 0, token 3 of 12", "found 99, expected 13",
                          "message 9 at 0.090 s")

    def test_finds_tokens_that_changed_places(self):
        a, b = self.deltas[4], self.deltas[6]
        events = self.history.events
        events[a], events[b] = events[b], events[a]
        self.assert_finds("sample 0, token 2")

    def test_finds_tokens_of_another_sample(self):
        self.history.events[self.deltas[4]].index = 1
        self.assert_finds("token")

    def test_finds_one_changed_bit_of_a_logprob(self):
        event = self.history.events[self.deltas[6]]
        right = event.tokens[0]
        event.tokens = (Token(right.id, right.logprob ^ 1, right.top),)
        self.assert_finds("sample 0, token 3 of 12", "logprob bits")

    def test_finds_one_changed_bit_among_the_likeliest(self):
        event = self.history.events[self.deltas[6]]
        right = event.tokens[0]
        event.tokens = (Token(right.id, right.logprob,
                              (right.top[0], (right.top[1][0], right.top[1][1] ^ 1))),)
        self.assert_finds("sample 0, token 3 of 12", "likeliest")

    def test_finds_missing_logprobs(self):
        self.history.events[self.deltas[6]].tokens = ()
        self.assert_finds("1 tokens with 0 logprobs")

    def test_finds_changed_lost_and_repeated_prompt_logprobs(self):
        at = next(i for i, e in enumerate(self.history.events) if e.kind == "prompt_logprobs")
        right = self.history.events[at]
        right.tokens = (Token(2, right.tokens[0].logprob ^ 1, right.tokens[0].top),)
        self.assert_finds("prompt token 1")
        self.setUp()
        del self.history.events[at + 1]
        self.assert_finds("1 prompt logprobs before the answer, expected 2")
        self.setUp()
        self.history.events.insert(at, copy.deepcopy(self.history.events[at]))
        self.assert_finds("prompt logprobs from token 1 after 1")

    def test_finds_changed_text(self):
        self.history.events[self.deltas[6]].text = "x3 "
        self.assert_finds("sample 0", "text differs at character 9: 'x3")

    def test_finds_an_error_status(self):
        del self.history.events[-4:]
        self.history.events.append(Event("status", 1.0, value=("UNAVAILABLE", "rank 1 is gone")))
        self.assert_finds("ended UNAVAILABLE after 12, 12 tokens: rank 1 is gone")

    def test_finds_a_second_terminal(self):
        self.history.events.append(copy.deepcopy(self.history.events[-1]))
        self.assert_finds("status after status")
        self.setUp()
        self.history.events[-1:-1] = [copy.deepcopy(self.event("summary"))]
        self.assert_finds("summary after summary")
        self.setUp()
        self.history.events[-2:-2] = [copy.deepcopy(self.event("finished"))]
        self.assert_finds("finished of sample 0 after its end")

    def test_finds_a_second_start_and_words_after_the_end(self):
        self.history.events.insert(4, copy.deepcopy(self.history.events[0]))
        self.assert_finds("started after samples")
        self.setUp()
        self.history.events.append(copy.deepcopy(self.history.events[self.deltas[0]]))
        self.assert_finds("delta after status")

    def test_finds_a_stream_without_an_end(self):
        self.history.events.pop()
        self.assert_finds("no status after summary")

    def test_finds_ok_without_summary_or_with_an_unfinished_sample(self):
        self.history.events.remove(self.event("summary"))
        self.assert_finds("status OK without a summary")
        self.setUp()
        self.history.events.remove(self.event("finished"))
        self.assert_finds("sample 0 is not finished")

    def test_finds_a_changed_reason_seed_prompt_or_usage(self):
        self.event("finished").value = ("STOP", 0, "", 12)
        self.assert_finds("sample 0: finished ('STOP'")
        self.setUp()
        self.event("summary").value = (3, 25)
        self.assert_finds("usage (prompt, completion) (3, 25), expected (3, 24)")
        self.setUp()
        self.event("started").value = (8,)
        self.assert_finds("seed 8, expected 7")
        self.setUp()
        self.event("started").ids = (1, 2, 4)
        self.assert_finds("the prompt's tokens differ")

    def cancel_after(self, deltas):
        self.history.cancelled = True
        del self.history.events[self.deltas[deltas]:]
        self.history.events.append(Event("status", 1.0, value=("CANCELLED", "")))

    def test_a_request_that_its_client_cancelled_is_a_prefix(self):
        self.cancel_after(7)
        self.assertIsNone(check(self.history, self.reference))
        self.history.events[self.deltas[5]].ids = (77,)
        self.assert_finds("sample 1, token 2")

    def test_cancelled_without_the_client_is_a_difference(self):
        self.cancel_after(7)
        self.history.cancelled = False
        self.assert_finds("ended CANCELLED after 4, 3 tokens")

    def test_a_client_that_left_does_not_excuse_another_status(self):
        self.cancel_after(7)
        self.history.events[-1].value = ("INTERNAL", "a defect")
        self.assert_finds("ended INTERNAL")

    def test_a_disturbed_reference_measures_nothing(self):
        del self.reference.events[-4:]
        self.reference.events.append(Event("status", value=("UNAVAILABLE", "x")))
        self.assert_finds("the undisturbed run is no measure: ended UNAVAILABLE")

    def test_bits_tell_zeros_and_nan_apart(self):
        self.assertNotEqual(bits(0.0), bits(-0.0))
        self.assertEqual(bits(float("nan")), bits(float("nan")))


if __name__ == "__main__":
    unittest.main()
