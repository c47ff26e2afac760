// Delays of the retry policy, with a clock and a random number of the test's own.
import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { createBackoff } from "../src/backoff.js";

let now;
let luck;
mock.method(Date, "now", () => now);
mock.method(Math, "random", () => luck);

beforeEach(() => {
  now = 1_000_000;
  luck = 0.5;
});

test("windows double up to the longest, and each delay is a part of one", () => {
  const backoff = createBackoff(100, 1_000);
  const delays = Array.from({ length: 6 }, () => backoff.next(false));
  assert.deepEqual(delays, [50, 100, 200, 400, 500, 500]);
  luck = 0;
  assert.equal(backoff.next(false), 0);
});

test("a stream that lived long enough starts the count again", () => {
  const backoff = createBackoff(100, 1_000);
  for (const [lived, delay] of [[9_999, 50], [9_999, 100], [10_000, 50]]) {
    backoff.onAttempt();
    backoff.onOpen(0);
    now += lived;
    assert.equal(backoff.next(false), delay);
  }
});

test("retry of the stream is the least window, unless the gateway requests a delay", () => {
  const backoff = createBackoff(100, 10_000);
  backoff.onOpen(3_000);
  assert.equal(backoff.next(false), 1_500);
  backoff.onAttempt();
  backoff.require(7_000);
  assert.equal(backoff.next(false), 7_000 + 100);
  backoff.onAttempt();
  assert.equal(backoff.next(false), 5_000, "a requested delay counts once");
});

test("failures without end stay finite", () => {
  const backoff = createBackoff(1, Number.MAX_VALUE);
  let delay = 0;
  for (let failure = 0; failure < 2_000; failure++) delay = backoff.next(false);
  assert.equal(delay, 2 ** 29);
});

test("without a network it waits for the longest delay", () => {
  assert.equal(createBackoff(100, 1_000).next(true), 1_000);
});

test("an early attempt respects the requested delay", () => {
  const backoff = createBackoff(100, 1_000);
  assert.equal(backoff.earlyRetryAt(), now + 50);
  backoff.onAttempt();
  backoff.require(5_000);
  backoff.next(false);
  now += 1_000;
  assert.equal(backoff.earlyRetryAt(), now + 4_000 + 50);
  now += 10_000;
  assert.equal(backoff.earlyRetryAt(), now + 50);
});
