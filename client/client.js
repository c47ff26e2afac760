/**
 * Channels of an sse-gateway in a page: resumed without a hole, every gap told, one stream for all tabs.
 * No dependencies, no build. How to use it: docs/client.md.
 * @module
 */

const SILENCE = 2.5; // heartbeats without a byte, after which a connection is dead
const HEALTHY = 10_000; // ms that a stream must have lived before its end counts as the first failure
const KEPT = 1_000; // events that each tab keeps for tabs that missed some
const BEAT = 15_000; // ms between two signs of life to the other tabs
const QUEUED = 10_000; // events that wait for an iterator before they become a gap

/** @typedef {import("./types.js").Options} Options */

/**
 * Subscribe to channels of the gateway at `url`.
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL} url
 * @param {Options} options
 * @returns {Stream<C>}
 */
export const connect = (url, options) => new Stream(url, options);

/** @template {object} [C=Record<string, any>] */
export class Stream {
  /** @type {import("./types.js").State} */
  state = "connecting";
  /** @type {string | undefined} why it is waiting or closed */
  reason;
  /** @type {string | undefined} */
  lastEventId;
  #channels;
  #handlers = {};
  #way;

  /**
   * @param {string | URL} url
   * @param {Options} options
   */
  constructor(url, { share, lastEventId, signal, ...options }) {
    const { channels, last, since } = options;
    if (!Array.isArray(channels) || !channels.length) throw new TypeError("channels: name at least one");
    if (share && (lastEventId ?? last ?? since) !== undefined)
      throw new TypeError("share: tabs share one place in the stream, so no last, since or lastEventId");
    this.#channels = channels;
    this.lastEventId = lastEventId;
    const settings = {
      credentials: "same-origin",
      minDelay: 1_000,
      maxDelay: 30_000,
      transport: globalThis.ReadableStream ? "fetch" : "eventsource",
      ...options,
      base: String(url).replace(/\/+$/, ""),
      client: unique(),
    };
    const hear = (news) => this.#hear(news);
    const canShare = share && globalThis.navigator?.locks && globalThis.BroadcastChannel;
    const { base, credentials, types } = settings;
    const name = `sse-gateway ${JSON.stringify([base, [...channels].sort(), types, credentials, share])}`;
    this.#way = canShare ? new Share(settings, name, hear) : new Link(settings, lastEventId, hear);
    signal?.addEventListener("abort", () => this.close("aborted"));
    if (signal?.aborted) this.close("aborted");
  }

  /**
   * Call `handler` for the events of a channel, for "gap", "state", or "*" (all events and gaps).
   * @template {keyof import("./types.js").Told<C>} K
   * @param {K} name
   * @param {(value: import("./types.js").Told<C>[K]) => void} handler
   * @returns {() => void} ends that
   */
  on(name, handler) {
    const handlers = (this.#handlers[name] ??= new Set());
    handlers.add(handler);
    return () => void handlers.delete(handler);
  }

  /** End it for good. */
  close(reason = "closed") {
    this.#hear({ change: { state: "closed", reason } });
  }

  /** @returns {AsyncGenerator<import("./types.js").Told<C>["*"], void, void>} events and gaps, until it is closed */
  async *[Symbol.asyncIterator]() {
    let queue = [];
    let wake;
    const ends = [
      this.on("state", () => wake?.()),
      this.on("*", (event) => {
        if (queue.push(event) > QUEUED) queue = gaps(this.#channels, "slow_reader");
        wake?.();
      }),
    ];
    try {
      while (queue.length || this.state !== "closed")
        if (queue.length) yield queue.shift();
        else await new Promise((resolve) => (wake = resolve));
    } finally {
      for (const end of ends) end();
    }
  }

  #hear({ change, id, event }) {
    if (this.state === "closed") return;
    this.lastEventId = id ?? this.lastEventId;
    if (change) {
      this.state = change.state;
      this.reason = change.reason;
      if (change.state === "closed") this.#way.close(change.reason);
      this.#emit("state", change);
    }
    if (!event) return;
    const name = event.type === "stream.gap" ? "gap" : event.channel;
    if (name === "gap" ? event.type === "stream.gap" : name !== "state" && name !== "*") this.#emit(name, event);
    this.#emit("*", event);
  }

  #emit(name, value) {
    for (const handler of [...(this.#handlers[name] ?? [])])
      try {
        handler(value);
      } catch (error) {
        fault(error);
      }
  }
}

const unique = () => globalThis.crypto?.randomUUID?.() ?? `${Math.random()}-${Date.now()}`;

/** Let the console tell of an error that must end nothing. */
const fault = (error) => void setTimeout(() => { throw error; });

const gaps = (channels, reason, after = null) =>
  channels.map((channel) => ({ type: "stream.gap", channel, reason, after, oldest: null }));

/** One connection after the other: backoff, resume, watchdog. Tells `{change}` and `{prev, id, event}`. */
class Link {
  heartbeat = 15_000;
  #settings;
  #hear;
  #id;
  #end; // why it is over
  #why; // why the last connection is
  #connection;
  #retry = 0; // of stream.open
  #floor = 0; // ms that the gateway wants us to wait, then the time until which it does
  #failures = 0;
  #opened = 0;
  #heard = 0;
  #due = 0;
  #held = false;
  #cut = new AbortController();
  #over = new AbortController();
  #dog;
  #timer;
  #wake;

  constructor(settings, id, hear) {
    this.#settings = settings;
    this.#id = id;
    this.#hear = hear;
    watch(this, this.#over.signal);
    this.#run();
  }

  close(reason) {
    this.#end ??= reason;
    this.drop(reason);
    this.#wake?.();
  }

  /** End the connection; another one follows. */
  drop(reason) {
    this.#why ??= reason;
    this.#cut.abort();
  }

  /** Be silent, as a page in the back/forward cache must be, until it is shown. */
  hold(held) {
    if (this.#held === held) return;
    this.#held = held;
    this.drop("paused");
    this.#wake?.();
  }

  /** Come back sooner, for things look better; but not before the gateway wants it. */
  soon() {
    const now = Date.now();
    const due = Math.max(now, this.#floor) + Math.random() * this.#settings.minDelay;
    if (!this.#due) now - this.#heard > SILENCE * this.heartbeat && this.drop("silence"); // it slept, timers too
    else if (due < this.#due) this.#arm(due);
  }

  async #run() {
    await null; // so that handlers are there
    while (!this.#end) {
      if (!this.#held) await this.#attempt();
      if (!this.#end) await this.#rest();
    }
    this.#over.abort();
    this.#tell("closed", this.#end);
  }

  #tell(state, reason, delay) {
    this.#hear({ change: { state, reason, delay } });
  }

  #arm(due) {
    clearTimeout(this.#timer);
    this.#due = due;
    this.#timer = setTimeout(this.#wake, due - Date.now());
  }

  async #rest() {
    const { minDelay, maxDelay } = this.#settings;
    const now = Date.now();
    if (this.#opened && now - this.#opened >= HEALTHY) this.#failures = 0;
    // Full jitter: a thousand clients that lost one gateway come back evenly spread.
    const base = this.#floor ? minDelay : Math.max(minDelay, this.#retry);
    const delay = this.#floor + Math.random() * Math.min(maxDelay, base * 2 ** Math.min(this.#failures++, 30));
    this.#floor += now;
    const rested = new Promise((resolve) => (this.#wake = resolve));
    if (this.#held) this.#tell("paused");
    else {
      this.#arm(now + delay);
      this.#tell(globalThis.navigator?.onLine === false ? "offline" : "waiting", this.#why, Math.round(delay));
    }
    await rested;
    clearTimeout(this.#timer);
    this.#wake = this.#due = 0;
  }

  async #attempt() {
    const { token, transport } = this.#settings;
    const { signal } = (this.#cut = new AbortController());
    this.#why = undefined;
    this.#opened = this.#floor = 0;
    this.#tell("connecting");
    this.#alive();
    const cut = new Promise((_, reject) => signal.addEventListener("abort", reject));
    const ask = async (refused) => {
      try {
        return typeof token === "function" ? await Promise.race([token(refused), cut]) : token;
      } catch (error) {
        this.#why ??= "token";
        throw error;
      }
    };
    try {
      const given = await ask();
      await Promise.race([cut, transport === "fetch" ? this.#fetch(given, ask, signal) : this.#source(given, signal)]);
    } catch {}
    this.drop("network");
    clearTimeout(this.#dog);
  }

  #alive() {
    this.#heard = Date.now();
    clearTimeout(this.#dog);
    this.#dog = setTimeout(() => this.drop("silence"), SILENCE * this.heartbeat);
  }

  #url(path, more) {
    const { base, channels, client, last, since, types } = this.#settings;
    const query = new URLSearchParams(channels.map((name) => ["channel", name]));
    for (const [name, value] of Object.entries({ client, last, since, types, ...more }))
      if (value !== undefined) query.set(name, value);
    return `${base}/${path}?${query}`;
  }

  async #fetch(token, ask, signal) {
    const { credentials, token: source } = this.#settings;
    const get = () => {
      const headers = { Accept: "text/event-stream" };
      if (token) headers.Authorization = `Bearer ${token}`;
      if (this.#id) headers["Last-Event-ID"] = this.#id;
      return fetch(this.#url("events", { format: "envelope" }), { headers, credentials, signal, cache: "no-store" });
    };
    let answer = await get();
    if (answer.status === 401 && typeof source === "function") {
      token = await ask(token ?? "");
      answer = await get();
    }
    if (!(await this.#isGood(answer, 200))) return;
    const reader = answer.body.getReader();
    const parse = parser((block) => signal.aborted || this.#take(block));
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.#alive();
      parse(value);
    }
  }

  async #isGood(answer, wanted) {
    const { status, headers } = answer;
    if (status === wanted && (status !== 200 || /^text\/event-stream/i.test(headers.get("Content-Type")))) return true;
    const told = await answer.json().catch(() => 0);
    this.#why = status === 200 ? "bad_answer" : status === 204 ? "no_content" : told.error ?? `status ${status}`;
    // What can never work ends it; a portal's page, or a gateway in trouble, does not.
    if (status === 204 || (status >= 400 && status < 500 && ![408, 425, 429].includes(status))) this.#end ??= this.#why;
    else this.#floor = 1_000 * (Number(headers.get("Retry-After")) || 0);
  }

  /** Where fetch cannot stream. */
  async #source(token, signal) {
    const { credentials } = this.#settings;
    let ticket;
    if (token) {
      const headers = { Authorization: `Bearer ${token}` };
      const answer = await fetch(this.#url("tickets"), { method: "POST", headers, credentials, signal });
      if (!(await this.#isGood(answer, 201))) return;
      ({ ticket } = await answer.json());
    }
    const more = { format: "message", heartbeat: "event", ticket, lastEventId: this.#id };
    const source = new EventSource(this.#url("events", more), { withCredentials: credentials === "include" });
    signal.addEventListener("abort", () => source.close());
    for (const event of ["message", "stream.open", "stream.gap", "stream.close", "stream.heartbeat"])
      source.addEventListener(event, ({ data, lastEventId }) => {
        this.#alive();
        this.#take({ event, data, id: lastEventId || undefined });
      });
    await new Promise((resolve) => (source.onerror = resolve));
  }

  #take({ event, data, id, retry = 0 }) {
    const { base } = this.#settings;
    const prev = this.#id;
    let told;
    try {
      told = JSON.parse(data);
    } catch {
      return fault(new SyntaxError(`sse-gateway: event ${id} is no JSON`));
    }
    if (event === "stream.heartbeat") {
      // A simple request, so that no preflight is needed.
      if (told.nonce) fetch(`${base}/streams/${this.#connection}/ack`, { method: "POST", body: told.nonce }).catch(() => 0);
    } else if (event === "stream.close") {
      this.#floor = retry;
      if (told.reconnect === false) this.#end ??= told.reason;
      this.drop(told.reason);
    } else {
      this.#id = id ?? prev;
      if (event === "stream.gap") told.type = event;
      this.#hear({ prev, id, event: event === "stream.open" ? undefined : told });
      if (event !== "stream.open") return;
      this.#connection = told.connection;
      this.heartbeat = told.heartbeat ?? this.heartbeat;
      this.#retry = retry;
      this.#opened = Date.now();
      this.#tell("open");
    }
  }
}

/**
 * One Link for all tabs. Who holds a Web Lock has it, and tells the others by a BroadcastChannel. Each event goes with
 * the id before it: who missed some notices, and asks. A holder that is frozen is robbed of its lock.
 */
class Share {
  #settings;
  #name;
  #hear;
  #me = unique();
  #id;
  #kept = new Map(); // the last events, by id
  #change;
  #link;
  #posts;
  #asked;
  #answer;
  #timer;
  #here = new AbortController();
  #over = new AbortController();

  constructor(settings, name, hear) {
    this.#settings = settings;
    this.#name = name;
    this.#hear = hear;
    if (settings.isWorker && settings.token)
      settings.token = (refused) => {
        this.#post({ wants: true, refused });
        return new Promise((resolve, reject) => {
          this.#answer = resolve;
          setTimeout(reject, 10_000);
        });
      };
    watch(this, this.#over.signal);
    this.#start();
  }

  get isOver() {
    return this.#over.signal.aborted;
  }

  close() {
    this.#over.abort();
    this.#leave();
  }

  hold(held) {
    if (!held) return this.#start();
    this.#leave();
    this.#accept({ change: { state: "paused" } });
  }

  /** Join, behind a worker where one can run: it outlives every tab. It must be this very file, of the page's origin. */
  #start() {
    const join = () => this.#join();
    const { origin, pathname } = new URL(import.meta.url);
    if (!globalThis.SharedWorker || origin !== location.origin || !/\/client(\.\w+)?\.js$/.test(pathname)) return join();
    const { port } = Object.assign(new SharedWorker(import.meta.url, { type: "module", name: this.#name }), { onerror: join });
    port.onmessage = join;
    port.postMessage({ ...this.#settings, token: !!this.#settings.token });
    setTimeout(join, 2_000);
  }

  #join() {
    if (this.#posts || this.isOver) return;
    this.#posts = new BroadcastChannel(this.#name);
    this.#posts.onmessage = ({ data }) => this.#receive(data);
    this.#ask();
    this.#wait();
    this.#stand();
  }

  #leave() {
    clearTimeout(this.#timer);
    this.#here.abort();
    this.#posts?.close();
    this.#posts = undefined;
  }

  #post(message) {
    this.#posts?.postMessage(message);
  }

  #ask() {
    this.#asked ||= !this.#post({ me: this.#me, at: this.#id });
  }

  /** Rob a leader that says nothing any more. */
  #wait() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#stand(true), (SILENCE + Math.random()) * BEAT);
  }

  /** Lead as soon as the lock is free, until this tab leaves or is robbed. */
  async #stand(steal) {
    this.#here.abort();
    const { signal } = (this.#here = new AbortController());
    const tabs = `${this.#name} tabs`;
    const { isWorker } = this.#settings;
    if (!isWorker) navigator.locks.request(tabs, { mode: "shared", signal }, () => ended(signal)).catch(() => 0);
    const lead = async () => {
      clearTimeout(this.#timer);
      const link = (this.#link = new Link(this.#settings, this.#id, (news) => link === this.#link && this.#pass(news)));
      const beat = setInterval(() => {
        this.#post({ change: this.#change, at: this.#id });
        if (isWorker) navigator.locks.request(tabs, { ifAvailable: true }, (lock) => lock && this.close());
      }, BEAT);
      await ended(signal);
      clearInterval(beat);
      this.#link = undefined;
      link.close("left");
    };
    try {
      await navigator.locks.request(this.#name, steal ? { steal } : { signal }, () => signal.aborted || lead());
    } catch {}
    if (!signal.aborted) this.#stand(this.#wait());
  }

  /** Tell what the Link brought. */
  #pass(news) {
    const { client } = this.#settings;
    if (news.change?.reason === "replaced") return this.#stand(this.#wait()); // robbed, while frozen
    this.#post({ ...news, at: this.#id, client });
    this.#accept(news);
  }

  #accept(news) {
    const { id, prev, change } = news;
    if (id && id !== prev) {
      this.#id = id;
      this.#kept.set(id, news);
      if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
    }
    if (change) this.#change = change;
    this.#hear(news);
    if (change?.state === "closed") this.close();
  }

  #receive(message) {
    const { wants, refused, token, me, at, to, lost, client, change, prev, id } = message;
    if ("token" in message) return this.#answer?.(token);
    if (wants) return this.#lend(refused);
    if (me) return this.#link && this.#help(me, at);
    if (this.#link || (to && to !== this.#me)) return;
    this.#wait();
    this.#settings.client = client ?? this.#settings.client;
    if (change) {
      this.#asked = false;
      this.#id ??= at;
      if (at !== this.#id && !this.#kept.has(at)) {
        if (!lost) return this.#ask();
        for (const event of gaps(this.#settings.channels, "handover", this.#id)) this.#hear({ event });
        this.#id = at;
      }
      if (change.state !== this.#change?.state || change.reason !== this.#change.reason) this.#accept({ change });
    } else if (!id || (!this.#kept.has(id) && prev === (this.#id ?? prev))) this.#accept(message);
    else if (!this.#kept.has(id)) this.#ask();
  }

  /** Give a tab what it missed after `at`, as far as it is kept. */
  #help(to, at) {
    const all = [...this.#kept.values()];
    const first = at ? all.findIndex(({ prev }) => prev === at) : -1;
    if (first >= 0) for (const news of all.slice(first)) this.#post({ ...news, to });
    this.#post({ to, change: this.#change, at: this.#id, client: this.#settings.client, lost: at && at !== this.#id && first < 0 });
  }

  /** Give the worker a token; one tab will do. */
  #lend(refused) {
    const { token } = this.#settings;
    const give = async (lock) => lock && this.#post({ token: typeof token === "function" ? await token(refused) : token });
    navigator.locks.request(`${this.#name} token`, { ifAvailable: true }, give).catch(fault);
  }
}

const ended = (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve));

// In a SharedWorker that a tab started, this file is what leads.
if (globalThis.SharedWorkerGlobalScope && name.startsWith("sse-gateway ")) {
  let share;
  addEventListener("connect", ({ ports: [port] }) => {
    port.onmessage = ({ data }) => {
      if (!share || share.isOver) share = new Share({ ...data, isWorker: true }, name, () => {});
      port.postMessage(0);
    };
  });
}

/** Call the methods of `it` as the page comes and goes. */
function watch(it, signal) {
  const { document } = globalThis;
  const on = (target, name, call) => target?.addEventListener?.(name, call, { signal });
  on(globalThis, "online", () => it.soon?.());
  on(globalThis, "offline", () => it.drop?.("offline"));
  on(document, "visibilitychange", () => document.hidden || it.soon?.());
  on(document, "freeze", () => it.hold(true));
  on(document, "resume", () => it.hold(false));
  on(document && globalThis, "pagehide", () => it.hold(true));
  on(document && globalThis, "pageshow", () => it.hold(false));
}

/** The framing of WHATWG HTML 9.2.6, for bytes however they are cut. A block counts when it is whole. */
function parser(take) {
  const decoder = new TextDecoder();
  let rest = "";
  let wasReturn;
  let block = {};
  return (bytes) => {
    let text = decoder.decode(bytes, { stream: true });
    if (!text) return;
    const isReturn = text.endsWith("\r");
    if (wasReturn && text[0] === "\n") text = text.slice(1);
    wasReturn = isReturn;
    if (!/[\r\n]/.test(text)) return void (rest += text);
    const lines = (rest + text).split(/\r\n|\r|\n/);
    rest = lines.pop();
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?([^]*)$/.exec(line);
      if (!line) {
        if ("data" in block) take(block);
        block = {};
      } else if (name === "data") block.data = "data" in block ? `${block.data}\n${value}` : value;
      else if (name === "event") block.event = value;
      else if (name === "id" && !value.includes("\0")) block.id = value;
      else if (name === "retry" && /^\d+$/.test(value)) block.retry = Number(value);
    }
  };
}
