/**
 * The XMLHttpRequest of a page over Node's fetch, as far as sse.js uses it: the text so far while it comes, and none
 * of it after a network error (XMLHttpRequest standard, "handle errors").
 */
export class Request extends EventTarget {
  static HEADERS_RECEIVED = 2;
  readyState = 0;
  status = 0;
  responseText = "";
  withCredentials = false;
  #headers = {};
  #told;
  #asked;
  #ending = new AbortController();

  get response() {
    return this.responseText;
  }

  open(method, url) {
    this.#asked = { method, url };
    this.#become(1);
  }

  setRequestHeader(name, value) {
    this.#headers[name] = value;
  }

  getAllResponseHeaders() {
    return [...this.#told].map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }

  abort() {
    this.#ending.abort();
  }

  async send() {
    const { method, url } = this.#asked;
    try {
      const answer = await fetch(url, { method, headers: this.#headers, signal: this.#ending.signal });
      this.#told = answer.headers;
      this.status = answer.status;
      this.#become(2);
      const decoder = new TextDecoder();
      for await (const part of answer.body) {
        this.responseText += decoder.decode(part, { stream: true });
        this.#become(3);
        this.dispatchEvent(new Event("progress"));
      }
      this.responseText += decoder.decode();
      this.#end("load");
    } catch {
      this.status = 0;
      this.responseText = "";
      this.#end(this.#ending.signal.aborted ? "abort" : "error");
    }
  }

  #become(state) {
    this.readyState = state;
    this.dispatchEvent(new Event("readystatechange"));
  }

  #end(type) {
    this.#become(4);
    this.dispatchEvent(new Event(type));
  }
}
