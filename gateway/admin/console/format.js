// Numbers and times for people.

const numbers = new Intl.NumberFormat("en");
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Return a rate per second: exact where it is small. */
function rate(value) {
  if (value === 0) return "0";
  return value < 0.1 ? "<0.1" : value < 10 ? value.toFixed(1) : numbers.format(Math.round(value));
}

/** Return a span of time in its largest unit that fits. */
function span(seconds) {
  const [unit, size] = UNITS.find(([, size]) => seconds >= size) ?? UNITS[3];
  return `${Math.floor(Math.max(0, seconds) / size)} ${unit}`;
}

/** Return how long ago something was, both in unix milliseconds. */
const ago = (then, now) => (then ? `${span((now - then) / 1000)} ago` : "never");

/** Return milliseconds, with as much detail as they are worth. */
function delay(seconds) {
  const ms = seconds * 1000;
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Return a number of bytes. */
function bytes(value) {
  let power = 0;
  while (value >= 1024 && power < SIZES.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${value < 10 && power ? value.toFixed(1) : Math.round(value)} ${SIZES[power]}`;
}

/** Return the time of day of unix milliseconds. */
const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

const plural = (count, one, many = `${one}s`) => `${numbers.format(count)} ${count === 1 ? one : many}`;
