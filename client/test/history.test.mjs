// What a tab keeps for other tabs: in order, complete or not at all, and bounded.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createHistory } from "../src/history.js";

/** Return a history of events `first` to `last`, each with the id before it. */
function historyOf(first, last) {
  const history = createHistory();
  for (let number = first; number <= last; number++)
    history.add(`${number}`, { id: `${number}`, previousId: `${number - 1}` });
  return history;
}

const ids = (updates) => updates?.map(({ id }) => id);

test("all events after an id, or none", () => {
  const history = historyOf(5, 9);
  assert.deepEqual(ids(history.after("7")), ["8", "9"]);
  assert.deepEqual(ids(history.after("4")), ["5", "6", "7", "8", "9"]);
  assert.equal(history.after("3"), undefined);
  assert.equal(history.after("9"), undefined);
});

test("1,000 events are kept", () => {
  const history = historyOf(1, 1_500);
  assert.equal(history.has("500"), false);
  assert.equal(history.has("501"), true);
  assert.equal(history.after("500")?.length, 1_000);
  assert.equal(history.after("499"), undefined);
});

test("a tab without a resume point has no event", () => {
  assert.equal(createHistory().has(undefined), false);
});

test("a resume point without an event is known, and never replayed", () => {
  const history = createHistory();
  history.add("1", {});
  history.add("2", { id: "2", previousId: "1" });
  assert.equal(history.has("1"), true);
  assert.deepEqual(ids(history.after("1")), ["2"]);
});
