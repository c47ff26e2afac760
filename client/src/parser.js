/**
 * Parsing of event streams.
 * @module
 */

/** @import { Message } from "./internals.js" */

/**
 * Return a function that parses the bytes of an event stream (WHATWG HTML §9.2.6), in pieces of any size.
 *
 * A block counts when its blank line has arrived. What a connection leaves unfinished is dropped, its id included:
 * the client resumes before that event and receives it whole.
 * @param {(message: Message) => void} onMessage called for each block that has data
 * @returns {(bytes: Uint8Array) => void}
 */
export function createParser(onMessage) {
  const decoder = new TextDecoder(); // removes a byte order mark
  let rest = "";
  /** @type {Partial<Message>} */
  let block = {};

  /** @param {string} line */
  const parseField = (line) => {
    const [, name, value = ""] = /^([^:]*):? ?([^]*)$/.exec(line) ?? [];
    if (name === "data") block.data = block.data === undefined ? value : `${block.data}\n${value}`;
    else if (name === "event") block.event = value;
    else if (name === "id" && !value.includes("\0")) block.id = value;
    else if (name === "retry" && /^\d+$/.test(value)) block.retry = Number(value);
  };

  const dispatch = () => {
    const { data, ...fields } = block;
    block = {};
    if (data !== undefined) onMessage({ data, ...fields });
  };

  return (bytes) => {
    // A CR at the end may be the first half of a CRLF whose LF is still to come.
    const lines = (rest + decoder.decode(bytes, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const line of lines)
      if (line) parseField(line);
      else dispatch();
  };
}
