// The parser against WHATWG HTML §9.2.6, with streams cut at every place.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createParser } from "../src/parser.js";

/** Return the messages of a stream that arrives in pieces of `size` bytes. */
function parse(text, size = Infinity) {
  const bytes = new TextEncoder().encode(text);
  const messages = [];
  const push = createParser((message) => messages.push(message));
  for (let start = 0; start < bytes.length; start += size) push(bytes.subarray(start, start + size));
  return messages;
}

const CASES = {
  "fields": ["id: 1\nevent: a\nretry: 20\ndata: x\n\n", [{ id: "1", event: "a", retry: 20, data: "x" }]],
  "several lines of data": ["data: 1\ndata:\ndata: 3\n\n", [{ data: "1\n\n3" }]],
  "one blank after the colon, or none": ["data:  x\n\ndata:y\n\n", [{ data: " x" }, { data: "y" }]],
  "a field without a colon": ["data\n\n", [{ data: "" }]],
  "a colon in a value": ["data: a:b: c\n\n", [{ data: "a:b: c" }]],
  "comments and unknown fields": [": hi\ndata: x\nother: y\n\n: hi\n\n", [{ data: "x" }]],
  "a block without data": ["id: 1\nevent: a\n\ndata: x\n\n", [{ data: "x" }]],
  "an unfinished block": ["data: x\n\nid: 2\ndata: y\n", [{ data: "x" }]],
  "an id with NUL": ["id: a\0b\ndata: x\n\n", [{ data: "x" }]],
  "a retry that is not a number": ["retry: 2s\ndata: x\n\n", [{ data: "x" }]],
  "an empty id": ["id:\ndata: x\n\n", [{ id: "", data: "x" }]],
  "a byte order mark": ["\ufeffdata: x\n\n", [{ data: "x" }]],
  "U+2028, NEL and emoji": ["data: a\u2028b\u0085c😀\n\n", [{ data: "a\u2028b\u0085c😀" }]],
};

for (const [name, [text, expected]] of Object.entries(CASES))
  for (const [lineEnd, kind] of [["\n", "LF"], ["\r\n", "CRLF"], ["\r", "CR"]])
    test(`${name}, ${kind}`, () => {
      // A last CR is the end of a line when another byte shows that it is not half of a CRLF.
      const stream = `${text.replaceAll("\n", lineEnd)}: more`;
      for (let size = 1; size <= stream.length; size++) assert.deepEqual(parse(stream, size), expected);
    });

test("messages do not share fields", () => {
  const messages = parse("id: 1\nevent: a\ndata: x\n\ndata: y\n\n");
  assert.deepEqual(messages, [{ id: "1", event: "a", data: "x" }, { data: "y" }]);
});
